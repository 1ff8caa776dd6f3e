"""The notebooks of docs/ run from the first cell to the last."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    plt.switch_backend("agg")
    try:
        exec(compile(path.read_text(encoding="utf-8"), path.name, "exec"), {"__name__": "notebook"})
        assert plt.get_fignums()
    finally:
        plt.close("all")
