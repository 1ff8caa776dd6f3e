"""Flower's entry to the clients; see fedmr_flwr/client/app.py."""

from fedmr_flwr.client.app import app

__all__ = ["app"]
