"""Choose the units to remove: the least important ones, leaving no dimension empty, at widths worth having."""

from collections.abc import Callable, Mapping, Sequence

from hasten.graph.channels import Channels, Group, Unit
from hasten.graph.relations import Axis
from hasten.graph.surgery import Cut
from hasten.pruning.importance import Scores, normalised

Rounding = Callable[[str, int], int]
"""(layer, width) -> the narrowest allowed width that is not below it."""


def lowest_in_each(groups: Sequence[Group], scores: Scores, counts: Mapping[str, int]) -> list[Unit]:
    """The `counts[name]` lowest units of every group (none where it is not named), at most all but one."""
    chosen: list[Unit] = []
    for group in groups:
        count = min(counts.get(group.name, 0), len(group.units) - 1)
        chosen += sorted(group.units, key=lambda u: scores[u.id])[: max(count, 0)]
    return chosen


def lowest_overall(groups: Sequence[Group], scores: Scores, count: int, room: Mapping[str, int]) -> list[Unit]:
    """The `count` units with the lowest normalised scores, at most `room[name]` of a group and all but one."""
    common = normalised(scores, groups)
    left = {g.name: min(room[g.name], len(g.units) - 1) for g in groups}
    ranked = sorted(((common[u.id], g.name, u) for g in groups for u in g.units), key=lambda found: found[:2])
    chosen: list[Unit] = []
    for _, name, unit in ranked:
        if len(chosen) >= count:
            break
        if left[name] > 0:
            left[name] -= 1
            chosen.append(unit)
    return chosen


def settled(channels: Channels, chosen: Sequence[Unit], scores: Scores, rounding: Rounding) -> list[Unit]:
    """`chosen` less the units that must return: no dimension is emptied, layers have widths that `rounding` allows.

    A width is rounded up by returning the most important units chosen from it, never beyond its original size, so
    rounding only ever keeps more.
    """
    kept = {unit.id: unit for unit in chosen}
    while True:
        cut = Cut(channels, kept.values())
        back = _to_fill(channels, cut, kept, scores) or _to_round(channels, cut, kept, scores, rounding)
        if not back:
            return list(kept.values())
        for unit in back:
            del kept[unit]


def _to_fill(channels: Channels, cut: Cut, kept: Mapping[int, Unit], scores: Scores) -> set[int]:
    """For every emptied axis the most important unit that empties it."""
    return {max(_within(channels, axis, kept), key=lambda u: scores[u]) for axis in cut.emptied()}


def _to_round(channels: Channels, cut: Cut, kept: Mapping[int, Unit], scores: Scores, rounding: Rounding) -> set[int]:
    """For the first layer of a width that is not allowed, the units to return."""
    for layer, axis, _ in channels.produced:
        size = cut.size(axis)
        if size == axis.size or rounding(layer, size) == size:
            continue
        back: set[int] = set()
        for unit in sorted(_within(channels, axis, kept), key=lambda u: -scores[u]):
            back.add(unit)
            # A unit can hold several positions (a head), so count anew.
            now = Cut(channels, [u for i, u in kept.items() if i not in back]).size(axis)
            if now in (axis.size, rounding(layer, now)):
                break
        return back
    return set()


def _within(channels: Channels, axis: Axis, kept: Mapping[int, Unit]) -> set[int]:
    """Chosen units that an axis loses positions to."""
    return {unit for units in channels.solution.units(axis) for unit in units if unit in kept}
