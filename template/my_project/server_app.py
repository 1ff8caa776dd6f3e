"""Flower's entry to the server."""

from pathlib import Path

from fedmr_flwr import server_app

# The configuration is looked up in this project, which travels with `flwr run`.
app = server_app(Path(__file__).parents[1])
