"""Federated learning with fedmr_flwr: a model, its data, and Flower's entries to both."""
