"""MobileNetV2 (Sandler et al. 2018, table 2)."""

from torch import Tensor, nn

# Expansion, output channels, blocks, stride of the first.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def convolution(channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


class InvertedResidual(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        layers = [*convolution(channels_in, hidden, 1), nn.ReLU6()] if expansion > 1 else []
        layers += [*convolution(hidden, hidden, 3, stride, hidden), nn.ReLU6(), *convolution(hidden, channels, 1)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


def network(classes: int = 1000) -> nn.Module:
    """[n, 3, 224, 224] to [n, classes]."""
    layers: list[nn.Module] = [*convolution(3, 32, 3, 2), nn.ReLU6()]
    channels_in = 32
    for expansion, channels, blocks, stride in STAGES:
        for block in range(blocks):
            layers.append(InvertedResidual(channels_in, channels, stride if block == 0 else 1, expansion))
            channels_in = channels
    layers += [*convolution(channels_in, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(1280, classes))
