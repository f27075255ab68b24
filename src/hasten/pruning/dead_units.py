"""Remove units that weight pruning has left without effect."""

import torch
from torch.fx import GraphModule

from hasten.graph.capture import as_tuple
from hasten.graph.channels import Channels, Slice, Unit, attribute, find_channels
from hasten.graph.surgery import remove
from hasten.pruning.selection import settled
from hasten.task import Inputs


def remove_dead_units(graph: GraphModule, example: Inputs) -> GraphModule:
    """`graph` without the filters, neurons and heads whose weights are all zero, where that changes no output.

    A unit that nothing reads any more can always go. A unit that reads nothing any more still gives a constant (its
    bias, the shift of a batch norm); such units go only if the outputs on `example` stay what they were. Without any,
    `graph` itself.
    """
    channels = find_channels(graph)
    units = [unit for group in channels.groups if not group.approximate for unit in group.units]
    unread = [unit for unit in units if _is_zero(graph, unit, reading=True)]
    constant = [unit for unit in units if unit not in unread and _is_zero(graph, unit, reading=False)]
    if not unread and not constant:
        return graph
    without = _without(channels, [*unread, *constant])
    if constant and not _agree(graph, without, example):
        without = _without(channels, unread)
    return without


def _without(channels: Channels, units: list[Unit]) -> GraphModule:
    return remove(channels, settled(channels, units, {u.id: 0.0 for u in units}, lambda layer, width: width))


def _is_zero(graph: GraphModule, unit: Unit, reading: bool) -> bool:
    """Whether all weights that read the unit (or that compute it) are zero; false if there are none."""
    weights = [s for s in unit.slices if attribute(graph, s.parameter).ndim > 1 and (s.dim == 1) == reading]
    return bool(weights) and not any(_part(graph, s).any() for s in weights)


def _part(graph: GraphModule, piece: Slice) -> torch.Tensor:
    tensor: torch.Tensor = attribute(graph, piece.parameter)
    return tensor.detach().index_select(piece.dim, torch.tensor(piece.indices, device=tensor.device))


def _agree(a: GraphModule, b: GraphModule, example: Inputs) -> bool:
    with torch.no_grad():
        pairs = zip(as_tuple(a(*example)), as_tuple(b(*example)), strict=True)
        return all(torch.allclose(x, y, rtol=1e-4, atol=1e-6 * float(x.abs().max())) for x, y in pairs)
