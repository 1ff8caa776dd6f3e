"""Flower's entry to the clients; see fedmr_flwr/client.py."""

from fedmr_flwr.client import app

__all__ = ["app"]
