"""How badly the layers that read a unit would answer without it, once the units that are left are refitted.

Removing inputs S of a layer with weight W and second moment H of its inputs, and refitting the others by least squares,
adds the squared error tr(W_S [H^-1]_SS^-1 W_S^T) to its answer (Hassibi and Stork 1993, "Optimal brain surgeon", for
groups of weights). Units are taken away one by one, the cheapest first; H^-1 and W follow. So of two units that say the
same, one goes for nothing, and then the other is worth both. Choosing what to remove by the next layer's error is Luo,
Wu and Lin 2017, "ThiNet", section 3.2, there without the refit.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from hasten.graph.channels import Channels, Group
from hasten.graph.lockstep import Frontier, affordable
from hasten.graph.parameters import tensor_of
from hasten.pruning.least_squares import Moments
from hasten.pruning.rows import MOST_INPUTS, Rows, reads_all_channels, rows_for
from hasten.task import Inputs

_MEMORY_BYTES = 1e9
_RIDGE = 1e-3


@dataclass
class _Reader:
    """A layer that reads units of a group, less those that were taken away.

    Attributes:
        weight: [outputs, inputs * kernel], scaled so that errors are relative to the answer's variance.
        inverse: Of the second moment of the inputs, [inputs * kernel, inputs * kernel].
        columns: Inputs of every unit of the group that is read here, by its index in the group.
    """

    weight: Tensor
    inverse: Tensor
    columns: dict[int, Tensor]

    def errors(self, units: Sequence[int]) -> Tensor:
        """What taking away each of some units would add, [units]."""
        found = torch.zeros(len(units), dtype=torch.float64)
        by_size: dict[int, list[int]] = {}
        for place, unit in enumerate(units):
            if unit in self.columns:
                by_size.setdefault(len(self.columns[unit]), []).append(place)
        for places in by_size.values():
            columns = torch.stack([self.columns[units[place]] for place in places])
            own = self.inverse[columns[:, :, None], columns[:, None, :]]
            weight = self.weight[:, columns].movedim(1, 0)
            found[places] = (torch.linalg.solve(own, weight.mT) * weight.mT).sum((1, 2))
        return found

    def drop(self, unit: int) -> None:
        """Take a unit away and refit the others."""
        columns = self.columns.pop(unit, None)
        if columns is not None:
            across = torch.linalg.solve(self.inverse[columns[:, None], columns], self.inverse[columns])
            self.weight -= self.weight[:, columns] @ across
            self.inverse -= self.inverse[:, columns] @ across
            # What is gone is never read again, but must not make the blocks beside it singular.
            self.inverse[columns, columns] = 1.0


@torch.no_grad()
def replaceability(channels: Channels, groups: Sequence[Group], batches: Iterable[Inputs]) -> dict[int, float]:
    """The error after taking away a unit and all of its group that are cheaper, by the unit's id; summed over readers.

    Units that no refittable layer reads are left out.

    Args:
        channels: Of the graph.
        groups: Whose units to judge.
        batches: Inputs to look at; as many of the first as 1 GB holds.
    """
    moments = _moments(channels, groups, batches)
    found: dict[int, float] = {}
    for group in groups:
        readers = [r for node, m in moments.items() if (r := _reader(channels, node, m, group)) is not None]
        left, total = list(range(len(group.units))), 0.0
        read = {unit for reader in readers for unit in reader.columns}
        left = [unit for unit in left if unit in read]
        while left:
            errors = sum((reader.errors(left) for reader in readers), torch.zeros(len(left), dtype=torch.float64))
            cheapest = int(errors.argmin())
            total += max(float(errors[cheapest]), 0.0)
            unit = left.pop(cheapest)
            found[group.units[unit].id] = total
            for reader in readers:
                reader.drop(unit)
    return found


def _moments(channels: Channels, groups: Sequence[Group], batches: Iterable[Inputs]) -> dict[Node, Moments]:
    """Of the inputs and outputs of every layer that reads units of the groups, in one pass."""
    graph = channels.graph
    wanted = {unit.id for group in groups for unit in group.units}
    kept = affordable(graph, batches, _MEMORY_BYTES)
    frontier, sampled = Frontier(graph, kept), Rows()
    found: dict[Node, Moments] = {}
    for node in frontier.nodes:
        weight = tensor_of(graph, node.args[1]) if reads_all_channels(node) else None
        source = node.args[0] if weight is not None else None
        if weight is None or not isinstance(source, Node) or weight[0].numel() > MOST_INPUTS:
            continue
        if not any(unit in wanted for units in _read(channels, node) for unit in units):
            continue
        found[node] = Moments.zero(weight[0].numel(), len(weight))
        rows = rows_for(weight[0].numel()) / max(len(kept), 1)
        for batch, answer in enumerate(frontier.behind(node.name)):
            z, y = sampled(node, weight, frontier.value(batch, source.name), answer, rows)
            found[node].add(z.flatten(0, 1), y.flatten(0, 1))
    return found


def _read(channels: Channels, node: Node) -> list[tuple[int, ...]]:
    """Units at every input of a layer."""
    for source, dim in channels.weighted.get(node.name, []):
        axes = channels.axes.get(source.name)
        if source is node.args[0] and isinstance(axes, tuple):
            return channels.solution.units(axes[dim])
    return []


def _reader(channels: Channels, node: Node, moments: Moments, group: Group) -> _Reader | None:
    index = {unit.id: place for place, unit in enumerate(group.units)}
    positions: dict[int, list[int]] = {}
    for position, units in enumerate(_read(channels, node)):
        for unit in units:
            if unit in index:
                positions.setdefault(index[unit], []).append(position)
    if not positions:
        return None
    weight = tensor_of(channels.graph, node.args[1])
    assert weight is not None
    kernel = weight[0, 0].numel()
    flat = weight.detach().flatten(1).double().cpu()
    mean = moments.z / moments.rows
    spread = moments.zz / moments.rows - torch.outer(mean, mean)
    spread += _RIDGE * spread.diagonal().mean().clamp_min(1e-12) * torch.eye(len(spread), dtype=spread.dtype)
    # Every output counts alike: a norm behind the layer would make them so.
    size = ((flat @ spread) * flat).sum(1, keepdim=True).clamp_min(1e-30).sqrt()
    columns = {u: (torch.tensor(p)[:, None] * kernel + torch.arange(kernel)).flatten() for u, p in positions.items()}
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(spread))
    return _Reader(flat / size / len(flat) ** 0.5, inverse, columns)
