"""Flower's entry to the clients; see fedmr_flwr/client/app.py."""

from fedmr_flwr import client_app as app

__all__ = ["app"]
