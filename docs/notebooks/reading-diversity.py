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
# # Reading similarity, spread, lineage and flatness
# A recombining server has K models, so there is more to look at than one curve. Three runs with the same seed:
# FedMR, FedMR that averages in the first ten rounds, and K models that are never mixed (`indep`).

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
variants = {
    "recombined": ["strategy.name=fedmr"],
    "averaged, then recombined": ["strategy.name=fedmr", "strategy.first-stage-rounds=10"],
    "never mixed": ["strategy.name=indep"],
}
# %% tags=["remove_output"]
results = {
    name: run("quickstart", *overrides, run_dir=runs / name.replace(", ", "-").replace(" ", "-"), **options)
    for name, overrides in variants.items()
}

# %% [markdown]
# ## Similarity
# The mean cosine similarity of all pairs of the K models that came back. All start from one model, and so near 1.
# Models that are never mixed drift apart for ever; averaging pulls them together in every round; recombination lets
# them differ, but keeps them from drifting, since each trains on the layers of the others.

# %%
figure, axes = plt.subplots(figsize=(7, 4))
for name, result in results.items():
    axes.plot(result.metrics["similarity"], label=name)
axes.set(xlabel="round", xticks=range(0, 21, 5), ylabel="cosine similarity", title="similarity of the five models")
axes.grid(alpha=0.3)
axes.legend()
figure.tight_layout()
# %% [markdown]
# ## Spread
# The standard deviation across the K models, for each unit of recombination. A unit whose spread stays large is one
# on which the clients do not agree; here the last layer, as their classes differ.

# %%
result = results["recombined"]
units = result.folder.read_manifest()["units"]
spread = np.array(result.metrics["spread"].tolist())

figure, axes = plt.subplots(figsize=(7, 4))
axes.plot(result.metrics.index, spread, label=units)
axes.set(xlabel="round", xticks=range(0, 21, 5), ylabel="standard deviation", title="spread of each unit, recombined")
axes.grid(alpha=0.3)
axes.legend()
figure.tight_layout()
# %% [markdown]
# ## Lineage
# Whose data has each layer of a slot's model passed through? Left: where each unit of slot 0's final model was
# trained in the rounds before, and by which client. Right: how many of the twenty clients a unit, and a whole model,
# have met. Every run draws this into its folder, with the two curves above; `fedmr plot RUN` draws them again.

# %%
figure, axes = plt.subplots(figsize=(11, 4.6), layout="constrained")
axes.imshow(plt.imread(runs / "recombined" / "lineage.png"))
axes.set_axis_off()

# %% [markdown]
# ## Flatness
# FedMR's idea is that what survives recombination lies in a flat part of the loss. `fedmr flatness RUN` measures
# that; this is the same in Python, on 200 training examples to be quick.

# %%
from fedmr_flwr.analysis.flatness.measure import Flatness

rows = {}
for name, result in results.items():
    measured = Flatness(result, 200, torch.device("cpu"), lambda step: None).measure(None, False, 0)["global"]
    rows[name] = {
        "loss": measured["loss"],
        "largest eigenvalue": measured["eigenvalues"][0],
        "sharpness": measured["sharpness"],
    }
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# The loss belongs beside it: a model that has learnt little is flat, too. Twenty rounds of one seed show how to read
# these numbers, not which strategy is flatter. See [measuring](../guides/measure.md#how-flat-is-the-minimum) for
# what each is.
