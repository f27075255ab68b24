"""Tabular data: a small multilayer perceptron on scikit-learn's breast-cancer table, enlarged with noise.

The table has 569 rows of 30 measurements. Rows kept for the holdout are repeated with measurement noise, as a stand-in
for a larger study, so that one point can be certified; no row is both trained on and held out.

Run it: hasten run examples/tabular.py --max-drop 1%
"""

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

import hasten

NOISE = 0.1
COPIES = 5


def table() -> tuple[Tensor, Tensor]:
    """Measurements [569, 30], standardised, and labels [569], in a fixed random order."""
    inputs, labels = load_breast_cancer(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(inputs, dtype=torch.float32)[order]
    return (x - x.mean(0)) / x.std(0), torch.tensor(labels)[order]


def train(model: nn.Module, inputs: Tensor, labels: Tensor, epochs: int = 30) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()


def task() -> hasten.Task:
    torch.manual_seed(0)
    inputs, labels = table()
    model = nn.Sequential(nn.Linear(30, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 2))
    training = list(zip(inputs[:341].split(32), labels[:341].split(32), strict=True))
    held, truth = inputs[341:].repeat(COPIES, 1), labels[341:].repeat(COPIES)
    held = held + NOISE * torch.randn(held.shape, generator=torch.Generator().manual_seed(1))
    return hasten.Task(
        model=train(model, inputs[:341], labels[:341]),
        example=(held[:8],),
        holdout=list(zip(held.split(64), truth.split(64), strict=True)),
        train=training,
        name="tabular",
    )
