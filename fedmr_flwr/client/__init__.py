"""A client: its Flower app, its data and device, its state between rounds, and its privacy."""
