"""Draw docs/fashion_mnist.png and print the table of docs/results.md from several run folders.

Its arguments are the folders of that page's runs:

    .venv/bin/python docs/fashion_mnist.py RUN [RUN …]
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import yaml

from fedmr_flwr.report import figures
from fedmr_flwr.runs.folder import RunFolder


@figures.styled
def main(runs: Annotated[list[Path], typer.Argument(help="Run folders.")]) -> None:
    """Plot a line for every run; print last, best and mean of the last five evaluations."""
    figure, (axes,) = figures.new(8, 4)
    lines = []
    for path in runs:
        folder = RunFolder(path)
        settings = yaml.safe_load(folder.config.read_text())
        name, seed = settings["strategy"]["name"], settings["seed"]
        rows = [row for row in folder.read_rows() if "test-accuracy" in row]
        rounds, accuracy = ([row[key] for row in rows] for key in ("round", "test-accuracy"))
        colour = dict(zip(("fedmr", "fedavg"), figures.COLOURS, strict=False))[name]
        style = ("-", "--", ":")[seed % 3]
        axes.plot(rounds, 100 * np.array(accuracy), color=colour, linestyle=style, label=f"{name}, seed {seed}")
        numbers = (100 * value for value in (accuracy[-1], max(accuracy), np.mean(accuracy[-5:])))
        cells = " | ".join(f"{number:.1f}" for number in numbers)
        lines.append(f"| {json.loads(folder.manifest.read_text())['strategy']['name']} | {seed} | {cells} |")
    figures.over_rounds(axes)
    axes.set_ylabel("accuracy (%)")
    axes.legend()
    title = "Fashion-MNIST, 100 clients, Dirichlet α = 0.1, 10 clients a round"
    figures.save(figure, "Test accuracy of the global model by round", title, Path(__file__).with_suffix(".png"))
    print("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
