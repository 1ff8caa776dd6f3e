"""What travels to a SuperLink and its nodes: the app's own files, and nothing that lies beside them."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fedmr_flwr.launch import flower

ROOT = Path(__file__).parents[2]


def test_only_the_apps_own_files_are_submitted(tmp_path):
    found = flower._copy_app(tmp_path / "app")
    # A repository has documents, tests and configurations, too.
    assert {path.name for path in found.iterdir()} == {
        "LICENSE", "client_app.py", "fedmr_flwr", "pyproject.toml", "server_app.py",
    }  # fmt: skip
    assert (found / "fedmr_flwr/core/recombination.py").exists()
    assert not list(found.rglob("__pycache__"))


def test_installed_package_is_not_submitted(tmp_path, monkeypatch):
    installed = tmp_path / "site-packages/fedmr_flwr/app"
    installed.mkdir(parents=True)
    for name in ("LICENSE", "client_app.py", "server_app.py", "pyproject.toml"):
        shutil.copy(ROOT / name, installed)
    monkeypatch.setattr(flower, "app_folder", lambda: installed)
    found = flower._copy_app(tmp_path / "app")
    assert {path.name for path in found.iterdir()} == {path.name for path in installed.iterdir()}
    assert "fab-include" not in (found / "pyproject.toml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("copied", [True, False], ids=["fedmr run", "flwr run ."])
def test_files_of_a_user_do_not_travel(tmp_path, monkeypatch, copied):
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "conf", checkout / "conf")
    shutil.copytree(ROOT / "fedmr_flwr", checkout / "fedmr_flwr")
    for name in ("LICENSE", "client_app.py", "server_app.py", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout)
    for planted in ("data/clinic/patients.json", "myenv/lib/torch/__init__.py", "runs/a/config.yaml", "notes.md"):
        (checkout / planted).parent.mkdir(parents=True, exist_ok=True)
        (checkout / planted).write_text("Erika Mustermann")
    (checkout / "my_models.py").write_text("")  # a module of the user's own, which the nodes need
    app = checkout
    if copied:
        monkeypatch.setattr(flower, "app_folder", lambda: checkout)
        monkeypatch.setattr(flower, "__file__", str(checkout / "fedmr_flwr/launch/flower.py"))
        app = flower._copy_app(tmp_path / "app")
    command = [Path(sys.executable).with_name("flwr"), "build", "--app", app]
    quiet = {"FLWR_HOME": str(tmp_path), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    subprocess.run(command, cwd=tmp_path, env=os.environ | quiet, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.fab")
    names = set(zipfile.ZipFile(built).namelist())
    assert {"server_app.py", "client_app.py", "my_models.py", "fedmr_flwr/core/recombination.py"} <= names
    assert not [name for name in names if "Erika Mustermann" in zipfile.ZipFile(built).read(name).decode()]


@pytest.mark.slow
def test_wheel_holds_its_configurations_and_template(tmp_path):
    """A run from the wheel alone, in an empty folder."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *offline, "--wheel-dir", tmp_path, ROOT], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    template, copy = ROOT / "template", site / "fedmr_flwr/app/template"
    own = {path.relative_to(template) for path in template.rglob("*.*") if "__pycache__" not in path.parts}
    assert {path.relative_to(copy) for path in copy.rglob("*.*")} == own
    empty.mkdir()
    code = "from fedmr_flwr.cli import main; main()"
    short = ["rounds=1", "device=cpu", "run-dir=out", "--engine", "in-process"]
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "quickstart", *short],
        cwd=empty, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (empty / "out/model.safetensors").exists()
