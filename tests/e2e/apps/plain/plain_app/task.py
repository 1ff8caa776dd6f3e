"""A small network on scikit-learn's handwritten digits."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(64, 32)
        self.norm = nn.BatchNorm1d(32)
        self.out = nn.Linear(32, 10)

    def forward(self, x):
        return self.out(torch.relu(self.norm(self.hidden(x))))


def load_data(partition_id, num_partitions):
    """Every fifth image is held out; partition -1 is what was held out."""
    images, labels = load_digits(return_X_y=True)
    held_out = torch.arange(len(labels)) % 5 == 0
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    if partition_id == -1:
        return TensorDataset(images[held_out], labels[held_out])
    own = slice(partition_id, None, num_partitions)
    return TensorDataset(images[~held_out][own], labels[~held_out][own])


def train(net, dataset, epochs, lr):
    loader = DataLoader(dataset, batch_size=32, shuffle=True, drop_last=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    running_loss = 0.0
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (len(loader) * epochs)


@torch.no_grad()
def test(net, dataset):
    net.eval()
    images, labels = dataset.tensors
    outputs = net(images)
    loss = nn.functional.cross_entropy(outputs, labels).item()
    return loss, (outputs.argmax(1) == labels).float().mean().item()
