"""Flower's entry to the server; see fedmr_flwr/launch/server_app.py."""

from fedmr_flwr.launch.server_app import app

__all__ = ["app"]
