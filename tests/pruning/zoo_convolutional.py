"""Convolutional networks written by hand, each for one way in which channels can depend on each other."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Build = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]


def conv(i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True)
    )


class Vgg(nn.Module):
    """Convolutions, then a flatten over channels and space."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, 8), nn.MaxPool2d(2), conv(8, 12), nn.AdaptiveAvgPool2d(2))
        self.head = nn.Sequential(nn.Linear(48, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.features(x), 1))


class CifarBlock(nn.Module):
    """A basic block whose shortcut pads channels with zeros (option A)."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(o), nn.BatchNorm2d(o)
        self.extra, self.stride = o - i, stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.extra or self.stride > 1:
            half = self.extra // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.extra - half))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.blocks = nn.Sequential(CifarBlock(8, 8, 1), CifarBlock(8, 16, 2), CifarBlock(16, 24, 2))
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class PreActResNet(nn.Module):
    """Normalisation before convolution; projection shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1, self.c1 = nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3, 2, 1)
        self.bn2, self.c2, self.short = nn.BatchNorm2d(12), nn.Conv2d(12, 12, 3, 1, 1), nn.Conv2d(8, 12, 1, 2)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.stem(x)))
        x = self.c2(F.relu(self.bn2(self.c1(x)))) + self.short(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class ResNeXt(nn.Module):
    """Grouped convolution between pointwise ones."""

    def __init__(self, groups: int = 4) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c = (
            conv(3, 16),
            conv(16, 16, 1),
            conv(16, 16, 3, groups=groups),
            conv(16, 16, 1),
        )
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc((x + self.c(self.b(self.a(x)))).mean((2, 3)))


class MixedGroups(nn.Module):
    """Two grouped convolutions of different group counts on the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 24), conv(24, 24, 3, groups=4), conv(24, 24, 3, groups=6)
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc((self.a(x) + self.b(x)).mean((2, 3)))


class DenseNet(nn.Module):
    """Every layer sees the concatenation of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 + 4 * i), nn.ReLU(), nn.Conv2d(8 + 4 * i, 4, 3, padding=1)) for i in range(3)
        )
        self.transition = nn.Sequential(nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1), nn.AvgPool2d(2))
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.fc(self.transition(torch.cat(features, 1)).mean((2, 3)))


class Inception(nn.Module):
    """Parallel branches joined by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.a, self.b, self.c = conv(8, 4, 1), nn.Sequential(conv(8, 4, 1), conv(4, 6)), conv(8, 3, 1)
        self.fc = nn.Linear(13, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = self.c(F.max_pool2d(x, 3, 1, 1))
        return self.fc(torch.cat([self.a(x), self.b(x), pooled], 1).mean((2, 3)))


class ShuffleUnit(nn.Module):
    def __init__(self, channels: int, builtin: bool) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            conv(half, half, 1), nn.Conv2d(half, half, 3, 1, 1, groups=half), nn.BatchNorm2d(half), conv(half, half, 1)
        )
        self.builtin = builtin

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        x = torch.cat([left, self.branch(right)], 1)
        if self.builtin:
            return F.channel_shuffle(x, 2)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class ShuffleNet(nn.Module):
    """Channel split, concatenation and shuffle."""

    def __init__(self, builtin: bool = False) -> None:
        super().__init__()
        self.stem, self.units = conv(3, 16), nn.Sequential(ShuffleUnit(16, builtin), ShuffleUnit(16, builtin))
        self.last, self.fc = conv(16, 12, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.units(self.stem(x))).mean((2, 3)))


class GroupedShuffle(nn.Module):
    """ShuffleNet v1: grouped convolutions with a shuffle between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.fc = (
            conv(3, 12),
            conv(12, 24, 1, groups=3),
            conv(24, 12, 1, groups=3),
            nn.Linear(12, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.stem(x))
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(self.b(x).mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.silu(self.down(x.mean((2, 3), keepdim=True)))))


class InvertedResidual(nn.Module):
    """Depthwise convolution with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand, self.depthwise = conv(3, 8), conv(8, 24, 1), conv(24, 24, 3, groups=24)
        self.se, self.project, self.fc = SqueezeExcite(24), nn.Conv2d(24, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc((x + self.project(self.se(self.depthwise(self.expand(x))))).mean((2, 3)))


class UNet(nn.Module):
    """Skip connections by concatenation, transposed convolution, dense output."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = conv(3, 8), conv(8, 12), conv(12, 16)
        self.up2, self.dec2 = nn.ConvTranspose2d(16, 12, 2, 2), conv(24, 12)
        self.dec1, self.out = conv(20, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.middle(F.max_pool2d(b, 2))
        b = self.dec2(torch.cat([self.up2(c), b], 1))
        return self.out(self.dec1(torch.cat([F.interpolate(b, scale_factor=2, mode="bilinear"), a], 1)))


class SuperResolution(nn.Module):
    """Pixel shuffle and its inverse."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.mid, self.up, self.out = (
            nn.Conv2d(12, 8, 3, 1, 1),
            conv(8, 8),
            nn.Conv2d(8, 24, 3, 1, 1),
            nn.Conv2d(6, 3, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.inner(F.pixel_unshuffle(x, 2)))
        return self.out(F.pixel_shuffle(self.up(x), 2))


class GroupNormNet(nn.Module):
    """Group normalisation: whole groups leave exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.Conv2d(16, 12, 3)
        self.d, self.fc = nn.InstanceNorm2d(12, affine=True), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.d(self.c(F.gelu(self.b(self.a(x))))).amax((2, 3)))


class Conv3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.up, self.out = (
            nn.Conv3d(1, 6, 3, padding=1),
            nn.BatchNorm3d(6),
            nn.ConvTranspose3d(6, 4, 2, 2),
            nn.Conv3d(4, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.up(F.max_pool3d(F.relu(self.b(self.a(x))), 2)))


class Cbam(nn.Module):
    """Channel attention by pooled statistics and spatial attention by statistics over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mlp = conv(3, 12), nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 12))
        self.space, self.last, self.fc = nn.Conv2d(2, 1, 3, padding=1), conv(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))
        x = x * gate[:, :, None, None]
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.fc(self.last(x * torch.sigmoid(self.space(seen))).mean((2, 3)))


class Ghost(nn.Module):
    """Half the channels computed, half by depthwise filters from them, then a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.primary, self.cheap, self.fc = (
            conv(3, 8),
            conv(8, 9, 1),
            conv(9, 9, 3, groups=9),
            nn.Linear(14, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(self.stem(x))
        return self.fc(torch.cat([x, self.cheap(x)], 1)[:, :14].mean((2, 3)))


class TwoInputs(nn.Module):
    """An image and a vector, with two outputs; the vector scales features (FiLM)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.film, self.body, self.fc, self.aux = (
            conv(3, 10),
            nn.Linear(4, 20),
            conv(10, 6),
            nn.Linear(6, 5),
            nn.Linear(10, 2),
        )

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.film(z).unsqueeze(-1).unsqueeze(-1).chunk(2, 1)
        x = self.stem(x) * scale + shift
        return self.fc(self.body(x).mean((2, 3))), self.aux(x.mean((2, 3)))


class PyramidDetector(nn.Module):
    """Feature pyramid with lateral sums and heads shared by the levels."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = conv(3, 8, stride=2), conv(8, 12, stride=2), conv(12, 16, stride=2)
        self.l1, self.l2, self.l3 = nn.Conv2d(8, 10, 1), nn.Conv2d(12, 10, 1), nn.Conv2d(16, 10, 1)
        self.tower, self.box = conv(10, 10), nn.Conv2d(10, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.c1(x)
        b = self.c2(a)
        r = self.l3(self.c3(b))
        q = self.l2(b) + F.interpolate(r, scale_factor=2.0)
        p = self.l1(a) + F.interpolate(q, scale_factor=2.0)
        found = [self.box(self.tower(level)) for level in (p, q, r)]
        return torch.cat([f.permute(0, 2, 3, 1).reshape(f.shape[0], -1, 4) for f in found], 1)


def _image(model: Callable[[], nn.Module], size: int = 16, channels: int = 3) -> Build:
    return lambda: (model(), (torch.randn(2, channels, size, size),))


def _of(model: Callable[[], nn.Module], *shape: int) -> Build:
    return lambda: (model(), (torch.randn(2, *shape),))


ZOO: dict[str, Build] = {
    "vgg": _image(Vgg),
    "cifar-resnet-option-a": _image(CifarResNet),
    "preact-resnet": _image(PreActResNet),
    "resnext": _image(ResNeXt),
    "mixed-groups": _image(MixedGroups),
    "densenet": _image(DenseNet),
    "inception": _image(Inception),
    "shufflenet-v2": _image(ShuffleNet),
    "shufflenet-v2-builtin": _image(lambda: ShuffleNet(builtin=True)),
    "shufflenet-v1": _image(GroupedShuffle),
    "inverted-residual-se": _image(InvertedResidual),
    "unet": _image(UNet),
    "super-resolution": _image(SuperResolution),
    "group-norm": _image(GroupNormNet),
    "conv3d": _of(Conv3d, 1, 4, 8, 8),
    "cbam": _image(Cbam),
    "ghost": _image(Ghost),
    "film-two-inputs": lambda: (TwoInputs(), (torch.randn(2, 3, 16, 16), torch.randn(2, 4))),
    "feature-pyramid": _image(PyramidDetector),
}
