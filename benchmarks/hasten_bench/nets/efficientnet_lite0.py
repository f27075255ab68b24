"""EfficientNet-Lite0 from the package `efficientnet-lite-pytorch`, with two classes."""

from efficientnet_lite_pytorch import EfficientNet
from torch import nn


def network(classes: int = 2) -> nn.Module:
    model = EfficientNet.from_name("efficientnet-lite0")
    model._fc = nn.Linear(model._fc.in_features, classes)
    return model
