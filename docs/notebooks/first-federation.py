# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first federation
# Twenty clients hold handwritten digits, each mostly a few of the ten classes. FedMR and FedAvg train on them, in
# this process and with the same seed: the same clients are drawn in the same rounds. It takes some seconds.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from fedmr_flwr import run

runs = Path(tempfile.mkdtemp())
options = {"rounds": 20, "engine": "in-process", "device": "cpu"}

# %% tags=["remove_output"]
fedmr = run("quickstart", run_dir=runs / "fedmr", **options)

# %% tags=["remove_output"]
fedavg = run("quickstart", "strategy.name=fedavg", run_dir=runs / "fedavg", **options)

# %% [markdown]
# `run` does what `fedmr run quickstart` does, and prints a line for each round (left out here): the results are in a
# folder, and `load_run(folder)` finds them again. First, who holds what: a row for each client, a column for each
# digit.

# %%
labels = fedmr.dataset.train.labels.numpy()
counts = np.array([np.bincount(labels[part], minlength=10) for part in fedmr.parts])

figure, axes = plt.subplots(figsize=(6, 5))
axes.imshow(counts, cmap="Blues", aspect="auto")
axes.set(xlabel="digit", ylabel="client", xticks=range(10), yticks=range(0, 20, 5), title="training examples")
for (client, digit), count in np.ndenumerate(counts):
    if count:
        axes.text(
            digit, client, str(count), ha="center", va="center", size=7, color="white" if count > 35 else "black"
        )

# %% [markdown]
# `metrics` is a pandas DataFrame with a row for each round.

# %%
fedmr.metrics[["train-loss", "test-loss", "test-accuracy", "similarity", "replies"]].tail()

# %%
figure, axes = plt.subplots(figsize=(7, 4))
for name, results in {"FedMR": fedmr, "FedAvg": fedavg}.items():
    axes.plot(100 * results.metrics["test-accuracy"], label=name)
axes.set(
    xlabel="round",
    xticks=range(0, 21, 5),
    ylabel="test accuracy (%)",
    title="digits, 20 clients, Dirichlet α = 0.3, seed 0",
)
axes.grid(alpha=0.3)
axes.legend()
figure.tight_layout()
# %% [markdown]
# FedAvg is ahead in most of these rounds. Twenty rounds of one seed on small images say little else:
# [results](../results.md) has longer runs, and `fedmr compare` tables over several seeds.
#
# The global model of FedMR is the mean of five models. How good is each of them?

# %%
test = fedmr.dataset.test
inputs = fedmr.dataset.prepare(test.inputs)


def accuracy(network: torch.nn.Module) -> float:
    with torch.no_grad():
        return (network.eval()(inputs).argmax(1) == test.labels).float().mean().item()


networks = {"mean of the models": fedmr.model()}
networks |= {f"slot {slot}": network for slot, network in enumerate(fedmr.population())}
pd.DataFrame({"test accuracy": {name: accuracy(network) for name, network in networks.items()}}).round(3)

# %% [markdown]
# Each slot's model has just been trained by one client, on that client's few classes, and some have forgotten the
# others. The mean, which no client has trained, is as good as the best of them.
