"""A shallower student out of the model itself: leave out the residual blocks that change their input least."""

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
from hasten.graph.taps import tap
from hasten.recipe import Stage, check_options, option
from hasten.task import Inputs, Task, calibration_inputs


@dataclass(frozen=True)
class Shrink:
    """Keep a share of the residual blocks, with their weights; meant to be followed by `Distill`.

    A block's importance is 1 - cosine of what enters and what leaves it (Men et al. 2024, "ShortGPT", section 3.2,
    block influence), or how far the model's output moves without it.

    Raises:
        InvalidInput: An option outside its range.
        Unsupported: The graph has no residual block that can be left out, or none would be.
    """

    stage: ClassVar[Stage] = Stage.PRUNE

    depth: float = option(0.5, "share of the residual blocks to keep", low=0.0, high=1.0, open_high=True)
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
        """A copy of `graph` without its least important blocks."""
        units = find_layers(graph) if self.unit == "layer" else find_blocks(graph)
        drop = len(units) - max(0, math.ceil(self.depth * len(units) - 1e-9))
        if drop == 0:
            raise Unsupported(
                f"`depth` {self.depth} leaves out no block: the graph has {len(units)} residual blocks whose input "
                "and output have one shape."
            )
        inputs = list(islice(calibration_inputs(task), self.batches))
        measure: Callable[..., list[float]] = _turns if self.importance == "cosine" else _moves
        ranked = sorted(zip(measure(graph, units, inputs), range(len(units)), strict=True))
        return without_blocks(graph, [units[index] for index in sorted(index for _, index in ranked[:drop])])


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
