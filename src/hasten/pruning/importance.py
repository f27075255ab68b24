"""How much each unit matters: by its activations over the calibration data, its weights, or its gradients.

Sources: activation norms as in network trimming (Hu et al. 2016); filter norms (Li et al. 2017, section 3.1), over
all weights that leave together (Fang et al. 2023, DepGraph, section 3.3); batch norm scales (Liu et al. 2017, Network
Slimming); first-order Taylor expansion (Molchanov et al. 2019, section 3.1, equation 8); geometric median (He et al.
2019, FPGM, section 3.3); the error of the next layers after a refit (`hasten.pruning.replaceability`).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from hasten.errors import Unsupported
from hasten.graph.capture import capture
from hasten.graph.channels import Channels, Group, Unit, attribute
from hasten.graph.duplicate import duplicate
from hasten.pruning.replaceability import replaceability
from hasten.task import Task, calibration_inputs, labelled
from hasten.training import task_loss

Importance = Literal[
    "activation_l2", "activation_l1", "weight_l2", "weight_l1", "bn_scale", "taylor", "fpgm", "replaceability"
]
IMPORTANCES: tuple[Importance, ...] = get_args(Importance)

Scores = dict[int, float]
"""Score of every unit by its id; higher matters more. Comparable within a group only."""


def unit_scores(
    channels: Channels, groups: Sequence[Group], importance: Importance, task: Task, samples: int | None = None
) -> Scores:
    """Scores of all units of `groups`; activations are looked at on the first `samples` inputs, None: on all.

    Raises:
        Unsupported: `bn_scale` where a group has no batch norm.
    """
    scorers: dict[str, Callable[[], Scores]] = {
        "activation_l1": lambda: _activation(channels, groups, task, samples, power=1),
        "activation_l2": lambda: _activation(channels, groups, task, samples, power=2),
        "weight_l1": lambda: _weight(channels, groups, power=1),
        "weight_l2": lambda: _weight(channels, groups, power=2),
        "bn_scale": lambda: _batch_norm_scale(channels, groups),
        "taylor": lambda: _taylor(channels, groups, task),
        "fpgm": lambda: _geometric_median(channels, groups),
        "replaceability": lambda: _replaceability(channels, groups, task, samples),
    }
    return scorers[importance]()


def normalised(scores: Scores, groups: Iterable[Group]) -> Scores:
    """Scores divided by the mean of their group, so that groups can be compared."""
    found: Scores = {}
    for group in groups:
        mean = sum(scores[u.id] for u in group.units) / len(group.units)
        found |= {u.id: scores[u.id] / mean if mean > 0 else 0.0 for u in group.units}
    return found


def _activation(channels: Channels, groups: Sequence[Group], task: Task, samples: int | None, power: int) -> Scores:
    """Norm per element of the activations that a unit hands to the layers after it, averaged over these layers."""
    wanted = {u.id for g in groups for u in g.units}
    places: dict[tuple[str, int], list[tuple[int, ...]]] = {}
    for reads in channels.weighted.values():
        for node, dim in reads:
            axes = channels.axes.get(node.name)
            if isinstance(axes, tuple):
                units = channels.solution.units(axes[dim])
                if any(u in wanted for found in units for u in found):
                    places[node.name, dim] = units
    sums = _ActivationSums(channels.graph, {key: len(units) for key, units in places.items()}, power)
    with torch.no_grad():
        for inputs in calibration_inputs(task, samples):
            sums.run(*inputs)
    norms: dict[int, list[float]] = {}
    for key, units in places.items():
        values = sums.mean(key)
        here: dict[int, list[float]] = {}
        for value, found in zip(values, units, strict=True):
            for unit in found:
                here.setdefault(unit, []).append(value)
        for unit, each in here.items():
            norms.setdefault(unit, []).append(float(np.mean(each)) ** (1 / power))
    weights = _weight(channels, groups, power) if wanted - set(norms) else {}
    return {u: float(np.mean(norms[u])) if u in norms else weights[u] for u in wanted}


class _ActivationSums(Interpreter):
    """Adds up |x|^power over the positions of chosen dimensions while a graph runs, batch after batch."""

    def __init__(self, graph: GraphModule, places: dict[tuple[str, int], int], power: int) -> None:
        super().__init__(graph)
        self.places = places
        self.power = power
        self.names = {name for name, _ in places}
        self.sums = {key: torch.zeros(size, dtype=torch.float64) for key, size in places.items()}
        self.counts = dict.fromkeys(places, 0)

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names and isinstance(value, Tensor):
            for (name, dim), size in self.places.items():
                if name == n.name:
                    self._add((name, dim), value, size)
        return value

    def _add(self, key: tuple[str, int], value: Tensor, size: int) -> None:
        # A dimension of symbolic size repeats its positions, so fold the repetitions away.
        rows = value.detach().movedim(key[1], -1).reshape(-1, size)
        self.sums[key] += rows.abs().double().pow(self.power).sum(0).cpu()
        self.counts[key] += len(rows)

    def mean(self, key: tuple[str, int]) -> list[float]:
        return [float(x) for x in self.sums[key] / max(self.counts[key], 1)]


def _replaceability(channels: Channels, groups: Sequence[Group], task: Task, samples: int | None) -> Scores:
    """Error of the layers that read a unit; units that none reads go by their weights."""
    found = replaceability(channels, groups, calibration_inputs(task, samples))
    weights = _weight(channels, groups, 2) if any(u.id not in found for g in groups for u in g.units) else {}
    return weights | found


def _weight(channels: Channels, groups: Sequence[Group], power: int) -> Scores:
    """Norm of all weights (not biases or norms) that leave with a unit."""
    totals = _PerIndex(channels.graph, lambda w: w.detach().abs().double().pow(power))
    return {u.id: totals.of(u, matrices=True) ** (1 / power) for g in groups for u in g.units}


class _PerIndex:
    """Sums of a function of parameters over everything but one dimension, computed once per parameter dimension."""

    def __init__(self, graph: GraphModule, function: Callable[[Tensor], Tensor]) -> None:
        self.graph = graph
        self.function = function
        self.sums: dict[tuple[str, int], Tensor] = {}

    def of(self, unit: Unit, matrices: bool = False) -> float:
        total = 0.0
        for piece in unit.slices:
            key = (piece.parameter, piece.dim)
            tensor = attribute(self.graph, piece.parameter)
            if not tensor.is_floating_point() or (matrices and tensor.ndim < 2):
                continue
            if key not in self.sums:
                others = [d for d in range(tensor.ndim) if d != piece.dim]
                values = self.function(tensor)
                self.sums[key] = values.sum(others) if others else values
            total += float(self.sums[key][list(piece.indices)].sum())
        return total


def _batch_norm_scale(channels: Channels, groups: Sequence[Group]) -> Scores:
    """|gamma| of the batch norms that a unit passes."""
    scales = {
        str(node.args[1].target)
        for node in channels.graph.graph.nodes
        if "batch_norm" in str(node.target) and isinstance(node.args[1], Node)
    }
    scores: Scores = {}
    for group in groups:
        for unit in group.units:
            found = [s for s in unit.slices if s.parameter in scales]
            if not found:
                raise Unsupported(
                    f"importance 'bn_scale' needs a batch norm behind every group, but {group.name} has none. "
                    "Choose another importance."
                )
            scores[unit.id] = sum(
                float(attribute(channels.graph, s.parameter).detach()[list(s.indices)].abs().sum()) for s in found
            )
    return scores


def _taylor(channels: Channels, groups: Sequence[Group], task: Task) -> Scores:
    """Sum over batches of (sum over the unit's parameters of weight * gradient)^2, on `train` or else the holdout."""
    graph = duplicate(channels.graph)
    loss = task_loss(task)
    scores: Scores = {u.id: 0.0 for g in groups for u in g.units}
    field = "holdout" if task.train is None else "train"
    original = None
    for inputs, target in labelled(getattr(task, field), field):
        if target is None:
            original = original or capture(task.model, task.example)
            with torch.no_grad():
                answer = original(*inputs)
            target = answer.softmax(-1) if isinstance(answer, Tensor) else answer
        graph.zero_grad(set_to_none=True)
        torch.autograd.backward(loss(graph(*inputs), target))
        products = _PerIndex(graph, _weight_times_gradient)
        for group in groups:
            for unit in group.units:
                scores[unit.id] += products.of(unit) ** 2
    return scores


def _weight_times_gradient(tensor: Tensor) -> Tensor:
    if tensor.grad is None:
        return torch.zeros_like(tensor, dtype=torch.float64)
    return (tensor.detach() * tensor.grad).double()


def _geometric_median(channels: Channels, groups: Sequence[Group]) -> Scores:
    """Sum of distances to the other units of the group: those near the geometric median can be replaced by others."""
    scores: Scores = {}
    for group in groups:
        rows = [_vector(channels.graph, unit) for unit in group.units]
        if len({len(r) for r in rows}) > 1:
            scores |= _weight(channels, [group], 2)
            continue
        distances = torch.cdist(torch.stack(rows), torch.stack(rows))
        scores |= {u.id: float(d) for u, d in zip(group.units, distances.sum(1), strict=True)}
    return scores


def _vector(graph: GraphModule, unit: Unit) -> Tensor:
    """The weights that compute the unit's outputs, flat; where there are none, all its weights."""
    pieces = [s for s in unit.slices if attribute(graph, s.parameter).ndim > 1]
    own = [s for s in pieces if s.dim == 0] or pieces
    flat = [
        attribute(graph, s.parameter).detach().index_select(s.dim, torch.tensor(s.indices)).reshape(-1) for s in own
    ]
    return torch.cat(flat).double()
