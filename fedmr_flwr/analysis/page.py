"""A run or a comparison as one HTML file, which needs no other file."""

import base64
import shlex
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader

from fedmr_flwr.analysis.studies import tables
from fedmr_flwr.config.loading import load_recorded
from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.files import write_aside
from fedmr_flwr.report import plots, scores
from fedmr_flwr.report.summary import Metrics, score
from fedmr_flwr.report.tables import format_score
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.runs.rows import scored_on

_KINDS = {".svg": "image/svg+xml", ".png": "image/png"}
# What a row of the metrics shows in the table of rounds.
_COLUMNS = {
    "round": "{}", "test-accuracy": "{:.4f}", "test-loss": "{:.4f}", "validation-accuracy": "{:.4f}",
    "validation-loss": "{:.4f}", "train-loss": "{:.4f}", "macro-f1": "{:.4f}",
    "similarity": "{:.4f}", "replies": "{}", "failures": "{}", "seconds": "{:.2f}",
}  # fmt: skip


def write(path: Path, out: Path | None = None) -> Path:
    """Write the page of a run or a comparison.

    Args:
        path: the folder.
        out: the file; None: report.html in the folder.

    Returns:
        The file.

    Raises:
        RunFolderError: the folder is neither, or a file in it is damaged.
    """
    if (path / "comparison.csv").exists():
        values = _of_comparison(path)
    elif (path / "config.yaml").exists():
        values = _of_run(RunFolder.open(path))
    else:
        raise RunFolderError(f"{path} has neither the config.yaml of a run nor the comparison.csv of fedmr compare")
    # With escaping: names of files, classes and clients' metrics are other people's text.
    environment = Environment(loader=PackageLoader("fedmr_flwr", "analysis"), autoescape=True, trim_blocks=True)
    page = environment.get_template("page.html").render(values)
    out = out or path / "report.html"
    write_aside(out, page.encode())
    return out


def _of_run(folder: RunFolder) -> dict[str, Any]:
    settings, manifest, rows = load_recorded(folder.config), folder.read_manifest(), folder.read_rows()
    found = score(folder, settings.seed, settings.rounds, settings.stop.target)
    ends = f"{folder.status} after {len(rows)} of {settings.rounds} rounds"
    if reason := manifest.get("stopped") or manifest.get("error"):
        ends = f"{folder.status}: {reason}"
    with tempfile.TemporaryDirectory() as scratch:
        drawn = [*plots.draw(folder, "svg", Path(scratch)), *scores.draw(folder, "svg", Path(scratch))]
        measured = [path for kind in ("flatness", "surface") for path in sorted(folder.path.glob(f"{kind}-*.png"))]
        pictures = _pictures([*drawn, folder.clients, folder.path / "skew.png", *measured])
    return {
        "title": manifest.get("title", folder.path.name),
        "state": f"{ends} · {folder.path.name}",
        "numbers": _highlights(found),
        "warnings": [f"round {row['round']}: {row['collapse']}" for row in rows if "collapse" in row],
        "pictures": pictures,
        "tables": [("Rounds", "", _rounds(rows), 0)] if rows else [],
        "score": {name: format_score(value) for name, value in found.items() if value is not None},
        "command_note": "The whole run again, in this folder's environment and with its config.yaml:",
        "command": shlex.join(["fedmr", "run", "config.yaml", "run-dir=NEW"]),
        "configuration_note": "with every default",
        "configuration": folder.config.read_text(encoding="utf-8"),
        "software": _software(manifest, tuple(name for name in manifest if name.endswith("-sha256"))),
    }


def _of_comparison(path: Path) -> dict[str, Any]:
    folders = [RunFolder(config.parent) for config in sorted(path.rglob("config.yaml"))]
    incomplete = [folder for folder in folders if folder.status != "completed"]
    first = next((folder for folder in folders if folder not in incomplete), None)
    part = scored_on(first.read_rows() if first else [])
    try:
        statistics = pd.read_csv(path / "comparison.csv").fillna({"cell": ""})
        runs = pd.read_csv(path / "runs.csv").fillna({"cell": ""})
        details = tables.details(statistics)
        names = len(set(details.columns) & {"cell", "strategy"})
        parts = [("All numbers", tables.CAPTION.format(part), details, names)]
        if statistics["cell"].nunique() > 1:
            caption = tables.CELLS_CAPTION.format(part)
            parts.insert(0, (f"{part.capitalize()} accuracy", caption, tables.by_cell(statistics, runs), 1))
    except (KeyError, ValueError) as error:
        raise RunFolderError(f"a table in {path} is damaged ({error}); fedmr compare writes it again") from None
    return {
        "title": f"Comparison: {', '.join(statistics['strategy'].unique())}",
        "state": f"{len(folders) - len(incomplete)} of {len(folders)} runs are complete · {path.name}",
        "warnings": [f"{folder.path.name} is not complete and is left out" for folder in incomplete],
        "pictures": _pictures(path / f"comparison{suffix}" for suffix in _KINDS)[:1],
        "tables": parts,
        "command_note": "Called again, it trains what is missing:",
        "command": (path / "command.txt").read_text(encoding="utf-8").strip(),
        "configuration_note": f"of {first.path.relative_to(path)}" if first else "no run is complete",
        "configuration": first.config.read_text(encoding="utf-8") if first else "",
        "software": _software(first.read_manifest(), ("data-sha256",)) if first else {},
    }


def _highlights(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the numbers at the top: name, value and note."""
    bytes_sent = found["bytes-down"] + found["bytes-up"]
    part = "test" if found["validation-accuracy"] is None else "validation"
    loss = found[f"{part}-loss"]
    numbers = [
        (f"{part} accuracy", _percent(found[f"{part}-accuracy"]), "" if loss is None else f"loss {loss:.4f}"),
        ("best", _percent(found["best-accuracy"]), f"round {found['best-round']}"),
        ("rounds", f"{found['rounds']:,}", f"{found['rounds-bad']} bad" if found["rounds-bad"] else ""),
        ("training", _duration(found["seconds"]), f"{found['seconds-per-round'] or 0:.2f} s a round"),
        ("sent and returned", f"{bytes_sent / 1e6:,.1f} MB", ""),
        ("failures", f"{found['failures']:,}", "of clients"),
    ]
    return [entry for entry in numbers if entry[1]]


def _percent(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{100 * accuracy:.2f} %"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _rounds(rows: Metrics) -> pd.DataFrame:
    """Return the rounds as text, in the columns that any of them has."""
    names = [name for name in _COLUMNS if any(name in row for row in rows)]
    lines = [[_COLUMNS[name].format(row[name]) if name in row else "" for name in names] for row in rows]
    return pd.DataFrame(lines, columns=[name.replace("-", " ") for name in names])


def _pictures(paths: Iterable[Path]) -> list[tuple[str, str]]:
    """Return the name and the content of each picture that exists, as an address."""
    return [
        (path.stem, f"data:{_KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}")
        for path in paths
        if path.exists()
    ]


def _software(manifest: dict[str, Any], hashes: Iterable[str]) -> dict[str, str]:
    """Return what a result depends on besides the configuration, and some of the manifest's hashes."""
    facts = {name: manifest[name] for name in ("engine", "device") if name in manifest}
    sums = {f"SHA-256 of {name.removesuffix('-sha256')}": manifest[name] for name in hashes if name in manifest}
    return {**facts, **manifest.get("versions", {}), **sums}
