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
# # Your own model and data
# A data set is a function, and a model a class, in a file that Python finds: `module:function` and `module:Class` in
# the configuration. This notebook writes such a file, with points on two half moons, and divides them among six
# clients.

# %%
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from fedmr_flwr import run

folder = Path(tempfile.mkdtemp())
(folder / "moons.py").write_text('''
import torch
from sklearn.datasets import make_moons
from torch import nn
from torch.utils.data import TensorDataset


def load(folder):
    """Return points on two half moons, and which of the two each is on."""
    points, labels = make_moons(1500, noise=0.2, random_state=0)
    return TensorDataset(torch.tensor(points, dtype=torch.float32), torch.tensor(labels))


class Tanh(nn.Module):
    """Three layers with tanh."""

    def __init__(self, input_shape, classes):
        super().__init__()
        self.first = nn.Linear(*input_shape, 32)
        self.second = nn.Linear(32, 32)
        self.classifier = nn.Linear(32, classes)

    def forward(self, inputs):
        return self.classifier(self.second(self.first(inputs).tanh()).tanh())
''')
sys.path.insert(0, str(folder))  # on the command line: export PYTHONPATH=FOLDER

# %% tags=["remove_output"]
results = run(
    "quickstart",
    "data.name=moons:load",
    "model.name=moons:Tanh",
    "partition.alpha=1",
    "training.lr=0.1",
    rounds=30,
    clients=6,
    clients_per_round=3,
    evaluate_every=5,
    engine="in-process",
    device="cpu",
    run_dir=folder / "run",
)

# %% [markdown]
# A fifth of the points, drawn from the seed, is for testing. The line is where the global model, the mean of three
# models, changes its mind.

# %%
network, dataset = results.model().eval(), results.dataset
x, y = np.linspace(-2, 3, 250, dtype=np.float32), np.linspace(-1.5, 2, 175, dtype=np.float32)
plane = torch.tensor(np.stack(np.meshgrid(x, y), -1))
with torch.no_grad():
    scores = network(plane.reshape(-1, 2)).softmax(1)[:, 1].reshape(len(y), len(x))

figure, axes = plt.subplots(figsize=(7, 5))
axes.contourf(x, y, scores, levels=20, cmap="RdBu", alpha=0.5)
axes.contour(x, y, scores, levels=[0.5], colors="black")
axes.scatter(
    *dataset.test.inputs.T,
    c=np.where(dataset.test.labels, "tab:blue", "tab:red"),
    s=20,
    edgecolor="white",
    linewidth=0.3,
)
accuracy = results.metrics["test-accuracy"].iloc[-1]
axes.set(title=f"two moons, test accuracy {100 * accuracy:.1f} %", aspect="equal")
figure.tight_layout()
# %% [markdown]
# What each client had, and what recombination moved: the layers of the class above.

# %%
for client, part in enumerate(results.parts):
    print(f"client {client}: {np.bincount(dataset.train.labels[part], minlength=2)} points of the two moons")

# %%
results.metrics[["similarity", "spread"]].dropna().tail(3)

# %% [markdown]
# More: [your own data](../guides/your-data.md), for files in folders, tables and arrays, and [your own
# model](../guides/your-model.md).
