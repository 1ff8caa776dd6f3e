"""`fedmr init`: a project that trains as it is, with a name that Flower and Python accept."""

import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.utils import is_valid_name
from hypothesis import given
from hypothesis import strategies as st

from fedmr_flwr.cli.init import init, package_name
from fedmr_flwr.errors import ConfigError, RunFolderError
from fedmr_flwr.runs.folder import RunFolder


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    init("first-try")
    return tmp_path / "first-try"


@pytest.mark.slow
def test_new_project_learns(project):
    command = [sys.executable, "-P", "-c", "from fedmr_flwr.cli import main; main()"]
    done = subprocess.run(
        [*command, "run", "conf.yaml", "rounds=6", "device=cpu", "run-dir=run", "--engine", "in-process"],
        cwd=project, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert RunFolder(project / "run").read_rows()[-1]["test-accuracy"] > 0.4, "chance is 0.1"


def test_files_have_the_projects_name(project):
    files = [path for path in project.rglob("*") if path.is_file()]
    assert project / "first_try/model.py" in files
    assert not [path for path in files if "my_project" in str(path) + path.read_text()]
    assert not [path for path in files if "my-project" in path.read_text()]


def test_flower_sends_the_code_alone(project):
    (project / "runs/a").mkdir(parents=True)
    for planted in ("patients.json", "runs/a/config.yaml"):
        (project / planted).write_text("{}")
    names = zipfile.ZipFile(BytesIO(build_fab_from_disk(project))).namelist()
    own = {f"first_try/{name}.py" for name in ("__init__", "client_app", "data", "model", "server_app")}
    assert {*names} == {".info/CONTENT", "pyproject.toml", "conf.yaml", *own}


@pytest.mark.slow
@given(st.from_regex(r"[A-Za-z0-9_.-]{0,34}", fullmatch=True))
def test_names_are_valid_for_flower(name):
    try:
        package_name(name)
    except ConfigError:
        return
    assert is_valid_name(name)[0]


@pytest.mark.parametrize("name", ["test", "class", "numpy", "sys", "fedmr-flwr"])
def test_names_of_python_are_refused(name):
    with pytest.raises(ConfigError, match=f"'{name}' cannot name a project: Python has a '.*' already"):
        package_name(name)


@pytest.mark.parametrize("name", ["", "9lives", "a_b", "-a", "a-", "a/b", "a" * 33])
def test_names_that_flower_refuses_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="cannot name a Flower app: use a letter, then"):
        init(name)
    assert not list(tmp_path.iterdir())


def test_only_an_empty_folder_is_filled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])  # as for the command
    Path("still-empty").mkdir()
    init("still-empty")
    with pytest.raises(RunFolderError, match="still-empty is not empty; choose another folder with another name"):
        init("still-empty")
