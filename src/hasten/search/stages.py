"""Parts of a network that are cut by one share each, and the pruning steps that shares stand for."""

import itertools
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from torch.fx import GraphModule

from hasten.graph.channels import Channels, Group, find_channels
from hasten.graph.cost import node_costs
from hasten.pruning.sensitivity import Curves
from hasten.recipe import Technique, make_technique

KINDS = {"prune_filters": frozenset({"filter"}), "prune_neurons": frozenset({"neuron", "head"})}

Shares = Mapping[str, float]
"""Share to remove by name of a stage or group."""

_LARGEST = 0.875
_SCORED_SAMPLES = 128
REFITTED_SAMPLES = 512


@dataclass(frozen=True)
class Stage:
    """Neighbouring groups of one kind.

    Attributes:
        name: For the log: kind and position.
        technique: The technique that cuts them.
        round_to: Widths of its layers are kept at multiples of this.
        weights: Multiply-accumulates that every group reaches, by its name.
    """

    name: str
    technique: str
    round_to: int
    weights: dict[str, int]


def find_stages(graph: GraphModule, count: int) -> list[Stage]:
    """About `count` stages of about equal multiply-accumulates, in graph order, of what can be cut exactly."""
    channels = find_channels(graph)
    reached = _reached(channels)
    by_kind = {
        (technique, kind): [g for g in channels.groups if g.kind == kind and not g.approximate and len(g.units) > 1]
        for technique, kinds in KINDS.items()
        for kind in sorted(kinds)
    }
    present = {key: groups for key, groups in by_kind.items() if groups}
    stages = []
    for (technique, kind), groups in present.items():
        share = max(1, min(len(groups), round(count / len(present))))
        for index, part in enumerate(_split(groups, reached, share)):
            weights = {g.name: reached[g.name] for g in part}
            stages.append(Stage(f"{kind} {index + 1}", technique, _round_to(kind, part), weights))
    return stages


def steps_of(
    stages: list[Stage], shares: Shares, curves: Curves, importance: str, *, refitted: int = REFITTED_SAMPLES
) -> tuple[Technique, ...]:
    """The pruning steps that remove `shares` (by stage); within a stage, groups that bear it lose more.

    Args:
        stages: From `find_stages`.
        shares: What to remove.
        curves: Damage by group.
        importance: What units are scored by.
        refitted: Samples that the layers left are refitted on, which changes what the network answers, not how fast it
            is; 0: they are not.
    """
    steps = []
    for technique in KINDS:
        own = [s for s in stages if s.technique == technique and shares.get(s.name, 0.0) > 0]
        groups = {k: v for stage in own for k, v in group_shares(stage, shares[stage.name], curves).items()}
        if groups:
            options = {
                "ratio": round(statistics.mean(groups.values()), 4),
                "ratios": tuple(sorted(groups.items())),
                "importance": importance,
                "round_to": min(stage.round_to for stage in own),
                "samples": min(_SCORED_SAMPLES, refitted or _SCORED_SAMPLES),
                "reconstruct": refitted,
            }
            steps.append(make_technique(technique, options))
    return tuple(steps)


def group_shares(stage: Stage, share: float, curves: Curves) -> dict[str, float]:
    """The share of every group of a stage, so that the stage loses `share` of its multiply-accumulates.

    Groups whose loss of half their units does twice the damage per multiply-accumulate are cut 1/sqrt(2) as much.
    """
    bears = {}
    for name, macs in stage.weights.items():
        damage = max(damage_of(curves.get(name, {}), 0.5), 1e-4)
        bears[name] = (max(macs, 1) / damage) ** 0.5 if curves.get(name) else 1.0
    total = sum(stage.weights.values()) or 1
    mean = sum(bears[name] * macs for name, macs in stage.weights.items()) / total or 1.0
    # Within a factor of 1.5: a curve from few samples is only a hint.
    factors = {name: min(1.5, max(0.5, value / mean)) for name, value in bears.items()}
    scale = sum(factors[name] * macs for name, macs in stage.weights.items()) / total or 1.0
    return {name: round(min(_LARGEST, share * factor / scale), 4) for name, factor in factors.items()}


def stage_curves(stages: list[Stage], curves: Curves, shares: list[float]) -> Curves:
    """Damage by stage and share: the sum over its groups."""
    return {
        stage.name: {
            share: sum(damage_of(curves.get(g, {}), s) for g, s in group_shares(stage, share, curves).items())
            for share in shares
        }
        for stage in stages
    }


def damage_of(curve: Mapping[float, float], share: float) -> float:
    """A measured curve at any share: linear between its points and the origin, level beyond them; 0 if it is empty."""
    points = [(0.0, 0.0), *sorted(curve.items())]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if share <= x1:
            return y0 + (y1 - y0) * (share - x0) / (x1 - x0)
    return points[-1][1]


def _reached(channels: Channels) -> dict[str, int]:
    """Multiply-accumulates of the nodes whose parameters a group has a part in, by the group's name."""
    costs = node_costs(channels.graph)
    macs: dict[str, int] = {}
    for node in channels.graph.graph.nodes:
        for source in node.all_input_nodes:
            if source.op == "get_attr" and node.name in costs:
                macs[str(source.target)] = macs.get(str(source.target), 0) + costs[node.name].macs
    return {
        group.name: sum(macs.get(p, 0) for p in {piece.parameter for piece in group.units[0].slices})
        for group in channels.groups
    }


def _split(groups: list[Group], reached: Mapping[str, int], count: int) -> list[list[Group]]:
    total = sum(max(reached[g.name], 1) for g in groups)
    parts: list[list[Group]] = [[] for _ in range(count)]
    seen = 0
    for group in groups:
        own = max(reached[group.name], 1)
        parts[min(count - 1, int((seen + own / 2) * count / total))].append(group)
        seen += own
    return [part for part in parts if part]


def _round_to(kind: str, groups: list[Group]) -> int:
    if kind == "head":
        return 1
    narrowest = min(len(g.units) for g in groups)
    return next((n for n in (16, 8, 4) if narrowest >= 8 * n), 2 if narrowest >= 8 else 1)
