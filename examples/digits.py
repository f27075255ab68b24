"""Handwritten digits (scikit-learn's 1,797 8x8 images) and a small convolutional network trained here in seconds.

Run it: hasten run examples/digits.py --max-drop 2%
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import hasten


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def data() -> tuple[Tensor, Tensor]:
    """Images [1797, 1, 8, 8] in [0, 1] and labels [1797], in a fixed random order."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16
    return images, torch.tensor(digits.target)[order]


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int = 12) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()


def batches(images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images.split(64), labels.split(64), strict=True))


def task() -> hasten.Task:
    torch.manual_seed(0)
    images, labels = data()
    # 897 images train, the other 900 are the holdout.
    training, holdout = (images[:897], labels[:897]), (images[897:], labels[897:])
    return hasten.Task(
        model=train(network(), *training),
        example=(holdout[0][:8],),
        holdout=batches(*holdout),
        train=batches(*training),
        name="digits",
    )
