"""A small convolutional network for 8x8 digits: seconds of work, for trying the harness itself."""

from torch import nn


def network(classes: int = 10) -> nn.Module:
    """[n, 1, 8, 8] to [n, classes]."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, classes),
    )
