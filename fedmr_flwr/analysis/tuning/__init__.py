"""Tuning: random search over options with successive halving, on a validation part of the training examples."""
