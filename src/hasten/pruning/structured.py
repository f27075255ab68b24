"""Remove units of chosen kinds: score, select, cut, and for the iterative form recover by training between the cuts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch.fx import GraphModule

from hasten.errors import InvalidInput, Unsupported, unknown
from hasten.graph.channels import Channels, Group, find_channels
from hasten.graph.surgery import remove
from hasten.pruning.importance import Importance, unit_scores
from hasten.pruning.reconstruct import reconstruct
from hasten.pruning.selection import lowest_in_each, lowest_overall, settled
from hasten.task import Task, calibration_inputs


@dataclass(frozen=True)
class Cutting:
    """What to cut and how to choose it.

    Attributes:
        kinds: Kinds of groups that may lose units.
        importance: What units are scored by.
        scope: "layer" cuts the ratio of every group, "global" the least important of all normalised by group.
        largest: Most of one group that a global cut may take.
        round_to: Widths are rounded up to multiples of this.
        widths: Allowed widths by layer; widths are rounded up to these where given.
        approximate: Also cut units that run through a normalisation over the cut dimension.
        ratios: Share to cut by group name; where given, only these groups are cut, by these shares.
        samples: Calibration samples that units are scored on; None: all.
        reconstruct: Calibration samples that the layers left are refitted on; 0: not at all.
    """

    kinds: frozenset[str]
    importance: Importance
    scope: str = "global"
    largest: float = 0.9
    round_to: int = 1
    widths: dict[str, tuple[int, ...]] = field(default_factory=dict)
    approximate: bool = False
    ratios: dict[str, float] = field(default_factory=dict)
    samples: int | None = None
    reconstruct: int = 0

    def rounded(self, layer: str, width: int) -> int:
        """The narrowest allowed width of a layer that is not below `width`; `width` itself if there is none."""
        allowed = [w for w in self.widths.get(layer, ()) if w >= width]
        width = min(allowed, default=width)
        return width if allowed else width + -width % self.round_to


def groups_of(channels: Channels, cutting: Cutting) -> list[Group]:
    """The groups that may lose units.

    Raises:
        Unsupported: There are none.
        InvalidInput: `ratios` names a group that there is not.
    """
    groups = [
        g for g in channels.groups if g.kind in cutting.kinds and (cutting.approximate or not g.approximate)
        and len(g.units) > 1
    ]  # fmt: skip
    if not groups:
        kinds = " or ".join(sorted(cutting.kinds))
        raise Unsupported(
            f"There must be {kinds} units that can be removed exactly, but this graph has none. "
            "Try another pruning technique, or `approximate`."
        )
    for name in cutting.ratios:
        if name not in {g.name for g in groups}:
            raise unknown("group", name, [g.name for g in groups])
    return groups


def cut(
    graph: GraphModule, task: Task, cutting: Cutting, ratio: float, sizes: Mapping[str, int] | None = None
) -> GraphModule:
    """A copy of `graph` without the least important `ratio` of the units that `cutting` allows.

    Args:
        graph: Left as it is.
        task: For the data that units are scored on.
        cutting: What may be cut.
        ratio: Share to remove; `cutting.ratios` go before it.
        sizes: Number of units by group that shares count from, where some were removed before; default: those of
            `graph`.

    Raises:
        Unsupported: No unit of these kinds can be removed, or rounding the widths leaves nothing to remove.
    """
    channels = find_channels(graph)
    groups = groups_of(channels, cutting)
    scores = unit_scores(channels, groups, cutting.importance, task, cutting.samples)
    first = {g.name: (sizes or {}).get(g.name, len(g.units)) for g in groups}
    gone = {g.name: first[g.name] - len(g.units) for g in groups}

    def still(name: str, share: float) -> int:
        return max(math.floor(share * first[name] + 1e-9) - gone[name], 0)

    if cutting.ratios:
        chosen = lowest_in_each(groups, scores, {name: still(name, share) for name, share in cutting.ratios.items()})
    elif cutting.scope == "layer":
        chosen = lowest_in_each(groups, scores, {name: still(name, ratio) for name in first})
    else:
        count = math.floor(ratio * sum(first.values()) + 1e-9) - sum(gone.values())
        chosen = lowest_overall(groups, scores, count, {name: still(name, cutting.largest) for name in first})
    units = settled(channels, chosen, scores, cutting.rounded)
    if chosen and not units:
        raise Unsupported(
            f"Rounding widths up leaves nothing to remove at ratio {ratio}. Allow narrower widths or raise `ratio`."
        )
    smaller = remove(channels, units)
    if units and cutting.reconstruct:
        reconstruct(smaller, channels, units, calibration_inputs(task, cutting.reconstruct))
    return smaller


class Further:
    """A step of iterative pruning: shares count from the graph of the first call."""

    def __init__(self, task: Task, cutting: Cutting, final: float) -> None:
        self.task = task
        self.cutting = cutting
        self.final = final
        self.sizes: dict[str, int] | None = None

    def __call__(self, graph: GraphModule, share: float) -> GraphModule:
        """Cut `graph` so that `share` of the first graph's units is gone."""
        if self.sizes is None:
            self.sizes = {g.name: len(g.units) for g in find_channels(graph).groups}
        grown = share / self.final if self.final else 1.0
        ratios = {name: ratio * grown for name, ratio in self.cutting.ratios.items()}
        return cut(graph, self.task, replace(self.cutting, ratios=ratios), share, self.sizes)


def check_ratios(ratios: Sequence[tuple[str, float]]) -> None:
    """Raise `InvalidInput` unless `ratios` holds pairs of a group's name and a share in [0, 1)."""
    for pair in ratios:
        if len(pair) != 2 or not isinstance(pair[0], str) or not 0 <= pair[1] < 1:
            raise InvalidInput(f"`ratios` must hold pairs of a group's name and a share in [0, 1), but got {pair!r}.")


def check_widths(widths: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    """Raise `InvalidInput` unless `widths` holds pairs of a layer's name and its allowed widths."""
    for pair in widths:
        if len(pair) != 2 or not isinstance(pair[0], str) or not all(isinstance(w, int) and w > 0 for w in pair[1]):
            raise InvalidInput(f"`widths` must hold pairs of a layer's name and positive integers, but got {pair!r}.")
