"""Fixtures of the end-to-end tests."""

import os
from contextlib import contextmanager
from uuid import uuid4

import pytest

from fedmr_flwr.launch.local_superlink import local_superlink
from tests.support.tools import BIN, ROOT, commanding, deploy_here, family

# A deployment: four nodes, each with examples of its own.
CLIENTS = 4
CONF = {
    "rounds": 2, "clients": CLIENTS, "clients-per-round": 3, "device": "cpu",
    "partition": {"name": "dirichlet", "alpha": 0.5}, "training": {"local-epochs": 1, "batch-size": 20, "lr": 0.05},
}  # fmt: skip


@contextmanager
def marked():
    """An environment whose processes can be found, and are killed in the end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "RAY_"))}
    own = clean | {"PATH": f"{BIN}{os.pathsep}{clean['PATH']}", "FEDMR_TEST": uuid4().hex}
    try:
        yield own
    finally:
        for process in family(own):
            process.kill()


@pytest.fixture
def env():
    with marked() as own:
        yield own


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The environment of commands that talk to a local SuperLink, started as `flwr run` does."""
    with local_superlink(str(ROOT), tmp_path_factory.mktemp("superlink") / "flower.log") as superlink:
        yield superlink.connection.env


@pytest.fixture
def deployment(tmp_path, env):
    """A folder with a deployment of four nodes on free ports of this machine."""
    deploy_here(env, tmp_path, CONF, CLIENTS)
    return tmp_path


@pytest.fixture
def there(env, deployment):
    """The environment of commands that talk to the deployment's SuperLink."""
    return commanding(env, deployment)
