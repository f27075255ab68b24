"""What a linear layer or a convolution reads and answers, as rows: every layer is a matrix product on them."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from hasten.graph.layers import CONVOLUTIONS

aten = torch.ops.aten

MOST_INPUTS = 8192  # a matrix of their products is 0.5 GB

_ROWS_PER_INPUT, _FEWEST_ROWS = 6, 4096


def reads_all_channels(node: Node) -> bool:
    """Whether `node` is a linear layer, or a convolution of one group."""
    if node.target in CONVOLUTIONS:
        return len(node.args) < 7 or bool(node.args[6] == 1)
    return node.target is aten.linear.default


def rows_for(inputs: int) -> int:
    """How many rows are enough to fit a weight of so many inputs."""
    return max(_FEWEST_ROWS, _ROWS_PER_INPUT * inputs)


class Rows:
    """Draws positions from a generator of its own, so that results repeat."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, node: Node, weight: Tensor, x: Tensor, y: Tensor, wanted: float) -> tuple[Tensor, Tensor]:
        """Inputs and outputs of a layer at P positions of every sample, in all about `wanted`, at most all.

        Args:
            node: The layer; see `reads_all_channels`.
            weight: Its weight, [outputs, inputs, *kernel].
            x: What it reads, [N, ..., inputs] or [N, inputs, *space].
            y: What it answers, [N, ..., outputs] or [N, outputs, *space].
            wanted: Rows.

        Returns:
            float32 [N, P, inputs * kernel] and [N, P, outputs].
        """
        x, y = x.float(), y.float()
        if node.target is aten.linear.default:
            x, y = (v.unsqueeze(1) if v.ndim == 2 else v.flatten(1, -2) for v in (x, y))
            sample, position = self._positions(len(x), x.shape[1], wanted)
            return x[sample, position], y[sample, position]
        patches = _patches(node, weight, x)
        sample, flat = self._positions(len(x), math.prod(y.shape[2:]), wanted)
        where: tuple[Any, ...] = (sample, slice(None), *torch.unravel_index(flat, y.shape[2:]))
        return patches[where].flatten(2), y[where]

    def _positions(self, samples: int, positions: int, wanted: float) -> tuple[Tensor, Tensor]:
        """[N, 1] and [N, P]: P different positions of every sample, all of them if that is not too many."""
        count = min(positions, math.ceil(wanted / samples))
        order = torch.rand(samples, positions, generator=self.generator).argsort(1)
        return torch.arange(samples)[:, None], order[:, :count]


def _patches(node: Node, weight: Tensor, x: Tensor) -> Tensor:
    """A view, [N, inputs, *space, *kernel]."""
    given = [*node.args[3:6], *(1, 0, 1)[len(node.args[3:6]) :]]
    stride, padding, dilation = (_each(value, x.ndim - 2) for value in given)
    x = F.pad(x, [p for each in reversed(padding) for p in (each, each)])
    for dim, size in enumerate(weight.shape[2:]):
        x = x.unfold(2 + dim, dilation[dim] * (size - 1) + 1, stride[dim])
    every: tuple[Any, ...] = (..., *(slice(None, None, step) for step in dilation))
    return x[every]


def _each(value: Any, dims: int) -> list[int]:
    """A number for every dimension, as ATen's convolutions read an argument."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * (dims // len(values))
