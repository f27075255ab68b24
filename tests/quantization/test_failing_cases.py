"""Four networks, trained here on digits, where plain rounding loses many points: the certificate refuses what it makes,
recovery brings 80% of the loss back."""

from collections.abc import Callable
from pathlib import Path

import digits
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hasten
from hasten.measure.certificate import certify
from hasten.recipe import Technique, make_target

PLAIN = hasten.Quantize(rounding="nearest", bias_correction=False)
_TRAINING = 897


class Vit(nn.Module):
    """A transformer of two blocks over 16 patches of 2x2 pixels; layer norms carry two outlier channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.place = nn.Conv2d(1, 32, 2, 2), nn.Parameter(torch.zeros(16, 32))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(4))
        self.mixers = nn.ModuleList(nn.Linear(32, 96) for _ in range(2))
        self.outs = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.ups = nn.ModuleList(nn.Linear(32, 64) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(64, 32) for _ in range(2))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.place
        for i in range(2):
            q, k, v = self.mixers[i](self.norms[2 * i](x)).chunk(3, -1)
            x = x + self.outs[i](nn.functional.scaled_dot_product_attention(q, k, v))
            x = x + self.downs[i](nn.functional.gelu(self.ups[i](self.norms[2 * i + 1](x))))
        logits: Tensor = self.head(x.mean(1))
        return logits


def convolution(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(after)]


def depthwise() -> nn.Sequential:
    return nn.Sequential(
        *convolution(1, 24, 3), nn.ReLU(), *convolution(24, 24, 3, groups=24), nn.ReLU(),
        *convolution(24, 32, 1), nn.ReLU(), *convolution(32, 32, 3, 2, groups=32), nn.ReLU(),
        *convolution(32, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def hard_swish() -> nn.Sequential:
    """Inverted residuals of MobileNetV3's kind: the depthwise layer ends without activation."""
    return nn.Sequential(
        *convolution(1, 24, 3), nn.Hardswish(), *convolution(24, 24, 3, groups=24), *convolution(24, 32, 1),
        nn.Hardswish(), *convolution(32, 32, 3, 2, groups=32), *convolution(32, 32, 1), nn.Hardswish(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def rescale(before: nn.Module, after: nn.Module, spread: float) -> None:
    """Divide the channels of a batch norm by factors from 10^-spread to 10^spread, and multiply what reads them."""
    first, second = before.weight, after.weight
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    channels = len(first)
    order = torch.randperm(channels, generator=torch.Generator().manual_seed(1))
    s = torch.logspace(-spread, spread, channels)[order]
    depthwise_after = getattr(after, "groups", 1) > 1
    with torch.no_grad():
        first.div_(s.view(-1, *[1] * (first.ndim - 1)))
        before.bias.div_(s)  # type: ignore[operator]
        shape = [-1 if dim == (0 if depthwise_after else 1) else 1 for dim in range(second.ndim)]
        second.mul_(s.view(shape))


def ill_depthwise(model: nn.Module) -> None:
    assert isinstance(model, nn.Sequential)
    for before, after in ((1, 3), (4, 6), (7, 9), (10, 12)):
        rescale(model[before], model[after], 1.3)


def ill_hard_swish(model: nn.Module) -> None:
    assert isinstance(model, nn.Sequential)
    for before, after in ((4, 5), (9, 10)):
        rescale(model[before], model[after], 2.0)


def ill_vit(model: nn.Module) -> None:
    assert isinstance(model, Vit)
    for i in range(2):
        for norm, layer in ((model.norms[2 * i], model.mixers[i]), (model.norms[2 * i + 1], model.ups[i])):
            with torch.no_grad():
                norm.weight[:2] *= 300.0  # type: ignore[index, operator]
                norm.bias[:2] *= 300.0  # type: ignore[index, operator]
                layer.weight[:, :2] /= 300.0  # type: ignore[index, operator]


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], None], Technique, tuple[Technique, ...]]] = {
    "depthwise with ill-scaled channels": (
        depthwise, ill_depthwise, PLAIN, (hasten.EqualizeLayers(), hasten.Quantize()),
    ),
    "vit with outlier activations": (Vit, ill_vit, PLAIN, (hasten.SmoothQuant(), hasten.Quantize())),
    "hard-swish": (hard_swish, ill_hard_swish, PLAIN, (hasten.EqualizeLayers(), hasten.Quantize())),
    "4-bit weights": (
        depthwise, ill_depthwise,
        hasten.QuantizeWeights(bits=4, rounding="nearest", bias_correction=False),
        (hasten.EqualizeLayers(), hasten.QuantizeWeights(bits=4, rounding="adaround")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_recovery_brings_back_what_plain_rounding_loses_and_the_certificate_refuses(name: str, tmp_path: Path) -> None:
    make, spoil, plain, chain = CASES[name]
    torch.manual_seed(0)
    images, labels = digits.data()
    model = digits.train(make(), images[:_TRAINING], labels[:_TRAINING], epochs=25 if name.startswith("vit") else 5)
    spoil(model)
    held, truth = images[_TRAINING:], labels[_TRAINING:]
    task = hasten.Task(model, (held[:8],), digits.batches(held, truth), calibration=[images[:256]])
    graph = hasten.capture(model, task.example)

    def right(found: np.ndarray) -> np.ndarray:
        return (found.argmax(1) == truth.numpy()).astype(np.float64)

    def deployed(*steps: Technique) -> np.ndarray:
        """1 where the deployed program is right, else 0."""
        changed, folder = graph, tmp_path / str(len(list(tmp_path.iterdir())))
        for step in steps:
            changed = step.apply(changed, task)
        folder.mkdir()
        target = make_target("onnxruntime", {"threads": 1})
        target.compile(changed, task, folder)
        return right(target.load(folder)(held.numpy())[0])

    with torch.no_grad():
        whole = right(graph(held).numpy())
    lost, recovered = deployed(plain), deployed(*chain)
    print(f"{name}: float {whole.mean():.3f}, plain {lost.mean():.3f}, recovered {recovered.mean():.3f}")
    assert whole.mean() > 0.8
    assert lost.mean() < whole.mean() - 0.05
    assert recovered.mean() >= lost.mean() + 0.8 * (whole.mean() - lost.mean())
    refused = certify(whole, lost, max_drop=0.01, confidence=0.95, indices=np.arange(len(held)))
    assert not refused.passed
