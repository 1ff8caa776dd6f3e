"""Fixtures of the end-to-end tests."""

import os
from uuid import uuid4

import pytest
from tools import BIN, family


@pytest.fixture
def env():
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "RAY_"))}
    marked = clean | {"PATH": f"{BIN}{os.pathsep}{clean['PATH']}", "FEDMR_TEST": uuid4().hex}
    yield marked
    for process in family(marked):
        process.kill()
