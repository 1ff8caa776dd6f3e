"""The one-GPU engine: the clients of a round side by side on one card."""
