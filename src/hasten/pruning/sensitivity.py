"""How much the score falls when one group alone is pruned, and how to share out a latency goal by it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch.fx import GraphModule

from hasten.distillation.teacher import teacher_key
from hasten.graph.channels import find_channels
from hasten.graph.surgery import remove, zero_parameters
from hasten.pruning.importance import unit_scores
from hasten.pruning.selection import lowest_in_each, settled
from hasten.pruning.structured import Cutting, groups_of
from hasten.task import Task
from hasten.training import mean_score

Curves = dict[str, dict[float, float]]
"""Drop of the mean score by group and by the share of it that was removed."""


def sensitivity(
    graph: GraphModule,
    task: Task,
    cutting: Cutting,
    ratios: Sequence[float] = (0.25, 0.5, 0.75),
    cache: Path | None = None,
) -> Curves:
    """The drop of the mean score on the holdout (the search part, inside a run) without any training.

    Args:
        graph: Left as it is.
        task: Its holdout measures the score.
        cutting: What may be cut and how units are scored.
        ratios: Shares to try of every group.
        cache: JSON file; read if it was written for the same weights and options, else written.
    """
    key = f"{teacher_key(graph)} {sorted(cutting.kinds)} {cutting.importance} {cutting.approximate} {list(ratios)}"
    key += f" {cutting.samples}"
    if cache is not None and cache.exists():
        document = json.loads(cache.read_text())
        if document["key"] == key:
            return {name: {float(r): d for r, d in drops.items()} for name, drops in document["drops"].items()}
    channels = find_channels(graph)
    groups = groups_of(channels, cutting)
    scores = unit_scores(channels, groups, cutting.importance, task, cutting.samples)
    mean = mean_score(task, graph)
    start = mean(graph)
    curves: Curves = {}
    for group in groups:
        curves[group.name] = {}
        # Exact units give the same output when their slices are zero, which takes no new shapes.
        without = remove if group.approximate else zero_parameters
        for ratio in ratios:
            chosen = lowest_in_each([group], scores, {group.name: int(ratio * len(group.units))})
            units = settled(channels, chosen, scores, replace(cutting, round_to=1, widths={}).rounded)
            curves[group.name][ratio] = start - mean(without(channels, units))
    if cache is not None:
        cache.write_text(json.dumps({"key": key, "drops": curves}))
    return curves


def allocate(
    curves: Curves, latency_ms: Callable[[Mapping[str, float]], float], goal_ms: float
) -> tuple[dict[str, float], float]:
    """Shares to remove by group so that the modelled latency meets a goal at the least summed drop; greedy.

    Each round takes the step of one group that costs the least score per millisecond gained, among the ratios that the
    curves know, until the goal is met or no step gains.

    Args:
        curves: From `sensitivity`.
        latency_ms: Latency of the model for shares by group; from measured layer latencies, never from MACs.
        goal_ms: What to reach.

    Returns:
        The shares, and the latency they are expected to have.
    """
    shares = dict.fromkeys(curves, 0.0)
    now = latency_ms(shares)
    while now > goal_ms:
        steps = []
        for name, curve in curves.items():
            for ratio in (r for r in curve if r > shares[name]):
                gained = now - latency_ms(shares | {name: ratio})
                cost = max(curve[ratio] - curve.get(shares[name], 0.0), 0.0)
                if gained > 0:
                    steps.append((cost / gained, -gained, name, ratio))
        if not steps:
            break
        _, gained, name, ratio = min(steps)
        shares[name] = ratio
        now += gained
    return {name: share for name, share in shares.items() if share > 0}, now
