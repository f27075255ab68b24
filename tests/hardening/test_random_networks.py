"""Networks that nobody designed: captured, pruned and quantized, they answer alike on every target.

The same few each time; `HASTEN_NETWORKS=100 HASTEN_SEED=7 pytest tests/hardening/test_random_networks.py` draws others,
and `benchmarks/reliability.py networks --count 1000` is the long form, for every night.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule

import hasten
from hasten.errors import Unsupported
from hasten.graph.capture import as_tuple, capture
from hasten.graph.channels import find_channels
from hasten.graph.storage import load_graph, save_graph
from hasten.graph.surgery import remove, run_masked
from hasten.recipe import make_target

NETWORKS = int(os.environ.get("HASTEN_NETWORKS", "50"))
SEED = int(os.environ.get("HASTEN_SEED", "-1"))
SIZE = 8
ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "gelu": nn.GELU, "hardswish": nn.Hardswish, "silu": nn.SiLU}
# Of the largest output. Rounding to 8 bits moves a deep random network by a few percent; a wrong program by all of it.
FLOAT_BOUND, INTEGER_BOUND = 2e-4, 0.15


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.body(x)
        return y


class Branches(nn.Module):
    """Two paths, concatenated."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x), self.second(x)], 1)


class Attention(nn.Module):
    """Pixels as tokens, two heads, behind a layer norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        _, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x.flatten(2).mT)).unflatten(-1, (3, 2, c // 2)).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(y).mT.unflatten(-1, (h, w))


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    torch.manual_seed(draw(st.integers(0, 2**16)))
    width = draw(st.sampled_from([4, 6, 8]))
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "depthwise", "residual", "branches", "attention", "pool"]))
        activation = ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))]
        if kind == "conv":
            wider = draw(st.sampled_from([4, 8, 12]))
            layers += [nn.Conv2d(width, wider, draw(st.sampled_from([1, 3])), padding="same"), nn.BatchNorm2d(wider)]
            width = wider
        elif kind == "depthwise":
            layers += [nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.BatchNorm2d(width)]
        elif kind == "residual":
            inner = draw(st.sampled_from([4, 8]))
            body = nn.Sequential(nn.Conv2d(width, inner, 3, padding=1), activation(), nn.Conv2d(inner, width, 1))
            layers.append(Residual(body))
        elif kind == "branches":
            layers.append(Branches(nn.Conv2d(width, 4, 1), nn.Conv2d(width, 4, 3, padding=1)))
            width = 8
        elif kind == "attention":
            layers.append(Attention(width))
        elif draw(st.booleans()):
            layers.append(nn.MaxPool2d(3, 1, 1))
        else:
            layers.append(nn.AvgPool2d(3, 1, 1))
        layers.append(activation())
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)]
    return nn.Sequential(*layers).eval()


def _off(found: tuple[np.ndarray, ...], expected: Tensor) -> float:
    want = expected.numpy()
    return float(np.abs(found[0] - want).max() / (np.abs(want).max() + 1e-6))


def _check_pruning(graph: GraphModule, x: Tensor) -> GraphModule:
    """Half of every exact group leaves; what stays must answer as with zeros in their place."""
    channels = find_channels(graph)
    units = [u for g in channels.groups if not g.approximate for u in g.units[: len(g.units) // 2]]
    pruned = remove(channels, units)
    masked, cut = as_tuple(run_masked(channels, units, (x,)))[0], as_tuple(pruned(x))[0]
    assert torch.allclose(masked, cut, rtol=1e-4, atol=1e-4 * float(masked.abs().max()))
    return pruned


def _check_targets(graph: GraphModule, task: hasten.Task, expected: Tensor, bound: float) -> None:
    x = task.example[0].numpy()
    for name in ("eager", "onnxruntime", "openvino"):
        target = make_target(name)
        if target.missing():
            continue
        with tempfile.TemporaryDirectory() as folder:
            target.compile(graph, task, Path(folder))
            off = _off(target.load(Path(folder))(x), expected)
        assert off <= bound, f"{name} is off by {off:.2g} of the largest output"


@seed(SEED)
@settings(max_examples=NETWORKS, deadline=None, derandomize=SEED < 0, suppress_health_check=list(HealthCheck))
@given(model=networks())
def test_the_same_answer_everywhere(model: nn.Module) -> None:
    x = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    task = hasten.Task(model=model, example=(x,), holdout=[(x, torch.zeros(4, dtype=torch.int64))])
    with torch.no_grad():
        graph = capture(model, (x,))
        assert torch.allclose(as_tuple(graph(x))[0], model(x), atol=1e-5)
        pruned = _check_pruning(graph, x)
        with tempfile.TemporaryDirectory() as folder:
            save_graph(pruned, Path(folder))
            assert torch.equal(load_graph(Path(folder))(x), pruned(x))
        _check_targets(pruned, task, as_tuple(pruned(x))[0], FLOAT_BOUND)
    try:
        quantized = hasten.Quantize().apply(pruned, task)
    except Unsupported:
        return
    with torch.no_grad():
        _check_targets(quantized, task, as_tuple(quantized(x))[0], INTEGER_BOUND)
