"""A model in the shape of a LightningModule, and a Trainer as small as it can be."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class LitDigits(nn.Module):
    """The hooks of a LightningModule."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.encoder(x))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def test_step(self, batch, batch_idx):
        images, labels = batch
        return (self(images).argmax(1) == labels).float().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Trainer:
    def __init__(self, max_epochs):
        self.max_epochs = max_epochs

    def fit(self, model, loader):
        optimizer = model.configure_optimizers()
        loss = torch.zeros(())
        for _ in range(self.max_epochs):
            for at, batch in enumerate(loader):
                optimizer.zero_grad()
                loss = model.training_step(batch, at)
                loss.backward()
                optimizer.step()
        return loss.item()

    @torch.no_grad()
    def test(self, model, loader):
        return sum(model.test_step(batch, at).item() for at, batch in enumerate(loader)) / len(loader)


def load_data(partition_id, num_partitions):
    """Every fifth image is held out; partition -1 is what was held out."""
    images, labels = load_digits(return_X_y=True)
    held_out = torch.arange(len(labels)) % 5 == 0
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    if partition_id == -1:
        own = TensorDataset(images[held_out], labels[held_out])
    else:
        part = slice(partition_id, None, num_partitions)
        own = TensorDataset(images[~held_out][part], labels[~held_out][part])
    return DataLoader(own, batch_size=32, shuffle=partition_id >= 0)
