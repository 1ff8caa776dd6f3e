"""Draw docs/two-thousand-rounds.png: accuracy and loss by round, from docs/data/fashion-mnist-small.csv.

.venv/bin/python docs/two_thousand_rounds.py
"""

from pathlib import Path

import numpy as np
import pandas as pd

from fedmr_flwr.report import figures

HERE = Path(__file__).parent
# As in docs/results.md: every value is the mean of the five evaluations up to its round.
EVALUATIONS = 5
FIRST = 100
NAMES = {
    "fedmr/unit=tensor": "FedMR",
    "indep": "Indep",
    "fedavg/weighting=uniform": "FedAvg, uniform",
}
PANELS = {"test_accuracy": ("test accuracy (%)", 100), "test_loss": ("test loss", 1)}


@figures.styled
def main() -> None:
    """Draw the picture: a line for each strategy, the mean over its seeds, in a band from lowest to highest."""
    rows = pd.read_csv(HERE / "data/fashion-mnist-small.csv")
    figure, panels = figures.new(11, 4.4, 1, 2)
    for axes, (column, (label, scale)) in zip(panels, PANELS.items(), strict=True):
        for (strategy, name), colour in zip(NAMES.items(), figures.COLOURS, strict=False):
            own = rows[rows["strategy"] == strategy]
            by_seed = own.pivot(index="round", columns="seed", values=column).rolling(EVALUATIONS).mean() * scale
            by_seed = by_seed.loc[FIRST:]
            ends = np.stack([by_seed.min(axis=1), by_seed.max(axis=1)], axis=1)
            axes.plot(by_seed.index, by_seed.mean(axis=1), color=colour, label=f"{name}, {by_seed.shape[1]} seeds")
            figures.band(axes, by_seed.index.to_numpy(), ends, color=colour)
        axes.set_ylabel(label)
    panels[1].legend()
    figures.over_rounds(*panels)
    what = (
        "Accuracy and loss of the global model, mean of five evaluations; bands from the lowest seed to the highest"
    )
    setting = "6,000 examples of Fashion-MNIST, 100 clients, Dirichlet α = 0.1, filled up, 10 a round, CNN"
    figures.save(figure, what, setting, HERE / "two-thousand-rounds.png")


if __name__ == "__main__":
    main()
