"""Flower's entry to the clients."""

from fedmr_flwr import client_app as app

__all__ = ["app"]
