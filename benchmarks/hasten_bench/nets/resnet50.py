"""ResNet-50 (He et al. 2015, table 1), with the stride in the 3x3 convolution."""

import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        out = 4 * channels
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet50(nn.Module):
    """[n, 3, 224, 224] to [n, classes]."""

    def __init__(self, width: float, depths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels_in = round(64 * width)
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels_in, 7, 2, 3, bias=False),
            nn.BatchNorm2d(channels_in),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )
        stages = []
        for index, blocks in enumerate(depths):
            channels = round(64 * width) * 2**index
            for block in range(blocks):
                stages.append(Bottleneck(channels_in, channels, 2 if block == 0 and index > 0 else 1))
                channels_in = 4 * channels
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.stages(self.stem(x)), 1).flatten(1))


def network(width: float = 1.0, depths: tuple[int, ...] = (3, 4, 6, 3), classes: int = 1000) -> nn.Module:
    return ResNet50(width, tuple(depths), classes)
