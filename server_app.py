"""Flower's entry to the server; see fedmr_flwr/server.py."""

from fedmr_flwr.server import app

__all__ = ["app"]
