"""What `flwr app publish` checks of the repository, by Flower's own functions: no one can log in for a test."""

import subprocess
from importlib import import_module
from pathlib import Path

import pytest
from flwr.cli.config_utils import load_and_validate
from flwr.cli.utils import filter_paths_for_publish, validate_project_name

ROOT = Path(__file__).parents[2]
publish = import_module("flwr.cli.app_cmd.publish")  # `app_cmd` has a function of this name


@pytest.fixture(scope="module")
def files():
    """The files that Flower would take from a clone."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return filter_paths_for_publish({name: ROOT / name for name in done.stdout.splitlines()})


def test_files_are_few_small_and_text(files, capsys):
    publish._validate_files([*files.values()])
    assert f"{len(files)} files" in capsys.readouterr().out


def test_all_that_the_app_needs_is_published(files):
    assert {"pyproject.toml", "server_app.py", "client_app.py", "README.md", "LICENSE"} <= files.keys()
    assert {"conf/quickstart.yaml", "fedmr_flwr/core/recombination.py"} <= files.keys()


def test_configuration_has_neither_errors_nor_warnings():
    config, warnings = load_and_validate(ROOT / "pyproject.toml", check_module=True)
    publish._validate_description(config["project"]["description"])
    validate_project_name(config["project"]["name"], "[project].name")
    assert warnings == []
