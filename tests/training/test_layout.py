from typing import cast

import torch
from torch import Tensor, nn

import hasten
from hasten.training.device import takes_channels_last


class Viewed(nn.Module):
    """Refuses NHWC: its `view` joins dimensions that do not lie side by side there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x.view(x.shape[0], -1)


def test_convolutional_networks_take_nhwc_unless_they_refuse() -> None:
    images = torch.randn(4, 3, 8, 8)
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    assert takes_channels_last(pooled, (images,))
    assert takes_channels_last(hasten.capture(pooled, (images,)), (images,))
    assert cast(nn.Conv2d, pooled[0]).weight.is_contiguous()
    assert not takes_channels_last(Viewed(), (images,))
    assert not takes_channels_last(nn.Linear(3, 2), (torch.randn(4, 3),))
    assert not takes_channels_last(nn.Linear(8, 2), (images,))
