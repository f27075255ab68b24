"""A smaller student out of the model itself: fewer residual blocks, fewer channels in those that stay."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule

from hasten.errors import Unsupported
from hasten.graph.blocks import Block, find_blocks, find_layers, without_blocks
from hasten.graph.capture import as_tuple
from hasten.graph.channels import Slice, Unit, find_channels
from hasten.graph.surgery import remove
from hasten.graph.taps import tap
from hasten.recipe import Stage, check_options, option
from hasten.task import Inputs, Task, calibration_inputs


@dataclass(frozen=True)
class Shrink:
    """Keep a share of the residual blocks and of the channels, with their weights; `Distill` is meant to follow.

    A block's importance is 1 - cosine of what enters and what leaves it (Men et al. 2024, "ShortGPT", section 3.2,
    block influence), or how far the model's output moves without it. Of the filters, neurons and attention heads
    that can be compared with each other, those with the largest L2 norm of all their weights stay.

    Raises:
        InvalidInput: An option outside its range.
        Unsupported: Nothing of the graph would be left out.
    """

    stage: ClassVar[Stage] = Stage.PRUNE

    depth: float = option(0.5, "share of the residual blocks to keep", low=0.0, high=1.0)
    width: float = option(1.0, "share of the filters, neurons and attention heads to keep", low=0.01, high=1.0)
    unit: Literal["layer", "block"] = option(
        "layer", "what is left out: layer joins blocks that repeat together (attention and feed-forward)",
        choices=("layer", "block"),
    )  # fmt: skip
    importance: Literal["cosine", "output"] = option(
        "cosine", "by how little a block turns its input, or by how little the output moves without it",
        choices=("cosine", "output"),
    )  # fmt: skip
    batches: int = option(4, "calibration batches to look at", low=1)

    def __post_init__(self) -> None:
        check_options(self)

    def apply(self, graph: GraphModule, task: Task) -> GraphModule:
        """A smaller copy of `graph`."""
        units = find_layers(graph) if self.unit == "layer" else find_blocks(graph)
        drop = len(units) - math.ceil(self.depth * len(units) - 1e-9)
        shorter = self._without(graph, units, drop, task) if drop else graph
        removed = _least(shorter, self.width) if self.width < 1 else []
        if drop == 0 and not removed:
            raise Unsupported(
                f"`depth` {self.depth} and `width` {self.width} leave out nothing: the graph has {len(units)} residual "
                "blocks whose input and output have one shape, and no group of channels that is large enough."
            )
        return remove(find_channels(shorter), removed) if removed else shorter

    def _without(self, graph: GraphModule, units: tuple[Block, ...], drop: int, task: Task) -> GraphModule:
        inputs = list(islice(calibration_inputs(task), self.batches))
        measure: Callable[..., list[float]] = _turns if self.importance == "cosine" else _moves
        ranked = sorted(zip(measure(graph, units, inputs), range(len(units)), strict=True))
        return without_blocks(graph, [units[index] for index in sorted(index for _, index in ranked[:drop])])


def _least(graph: GraphModule, width: float) -> list[Unit]:
    """Of every group the units with the smallest weights, so that a share `width` is left, at least one."""
    tensors = dict(graph.state_dict(keep_vars=False))
    energies: dict[tuple[str, int], Tensor] = {}

    def energy(part: Slice) -> float:
        key = part.parameter, part.dim
        if key not in energies:
            weight = tensors[part.parameter].detach().double().movedim(part.dim, 0)
            energies[key] = weight.flatten(1).square().sum(1) if weight.ndim > 1 else weight.square()
        return float(energies[key][list(part.indices)].sum())

    least: list[Unit] = []
    for group in find_channels(graph).groups:
        weights = [(sum(energy(part) for part in unit.slices), index) for index, unit in enumerate(group.units)]
        drop = len(group.units) - max(1, math.ceil(width * len(group.units) - 1e-9))
        least += [group.units[index] for _, index in sorted(weights)[:drop]]
    return least


@torch.no_grad()
def _turns(graph: GraphModule, units: tuple[Block, ...], batches: list[Inputs]) -> list[float]:
    """1 - mean cosine of what enters and what leaves every unit, per token for [N, T, D], else per sample."""
    names = [name for unit in units for name in (unit.start, unit.end)]
    own = len(as_tuple(graph(*batches[0])))
    tapped = tap(graph, names)
    totals = [0.0] * len(units)
    for inputs in batches:
        values = as_tuple(tapped(*inputs))[own:]
        for i, (before, after) in enumerate(zip(values[::2], values[1::2], strict=True)):
            totals[i] += 1 - float(F.cosine_similarity(_vectors(before), _vectors(after), dim=1).mean())
    return [total / len(batches) for total in totals]


@torch.no_grad()
def _moves(graph: GraphModule, units: tuple[Block, ...], batches: list[Inputs]) -> list[float]:
    """Squared change of the first output without every unit, relative to the output."""
    expected = [_first(graph(*inputs)) for inputs in batches]
    scores = []
    for unit in units:
        shorter = without_blocks(graph, [unit])
        moved = [
            (_first(shorter(*inputs)) - y).square().sum() / y.square().sum()
            for inputs, y in zip(batches, expected, strict=True)
        ]
        scores.append(float(torch.stack(moved).mean()))
    return scores


def _vectors(value: Tensor) -> Tensor:
    return value.flatten(0, -2) if value.ndim == 3 else value.flatten(1)


def _first(output: Any) -> Tensor:
    return as_tuple(output)[0].float()
