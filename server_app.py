"""Flower's entry to the server; see fedmr_flwr/launch/server_app.py."""

from pathlib import Path

from fedmr_flwr import server_app

app = server_app(Path(__file__).parent)
