"""What cutting does to the answers before any training: the sensitivity of every group on a few samples."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from hasten.distillation.structure import class_axis, default_loss
from hasten.graph.capture import as_tuple
from hasten.pruning.sensitivity import Curves, sensitivity
from hasten.pruning.structured import Cutting
from hasten.search.session import Session
from hasten.search.stages import KINDS, Stage
from hasten.task import Inputs, Task, labelled
from hasten.training import mean_score

# A share of a deadline, or seconds where there is none.
_SHARE, _SECONDS = 0.12, 120.0
_LADDER: tuple[tuple[int, tuple[float, ...]], ...] = (
    (64, (0.25, 0.5, 0.75)),
    (32, (0.25, 0.5, 0.75)),
    (32, (0.5,)),
    (16, (0.5,)),
)
_OVERHEAD_S = 0.3
_WORST = 2.0
# Samples to judge the whole network on: what these seconds allow, within bounds.
_ROWS, _ROWS_S = (64, 256), 2.0


def fidelity(output: Any, target: Any, spread: float, classes: int | None = None) -> Tensor:
    """Minus the squared distance to the original's first output in units of its spread, at worst -2, [N].

    Accuracy on a few dozen samples says nothing; the distance of the answers does, and needs no labels.

    Args:
        output: Of the network that is judged.
        target: Of the original.
        spread: Mean squared distance of the original's answers from their mean. Not that of one batch: a few samples
            that happen to be answered alike would make any distance a large one.
        classes: Dimension of class scores, of which the probabilities are compared: how far apart scores are that leave
            no doubt does not matter. None: the outputs are compared as they are.
    """
    distance = (_compared(output, classes) - _compared(target, classes)).square().sum(1) / spread
    return -distance.clamp(max=_WORST)


def _compared(output: Any, classes: int | None) -> Tensor:
    """What is compared of an output, [N, values], float64."""
    values = as_tuple(output)[0].double()
    return (values if classes is None else values.softmax(classes)).flatten(1)


def on_few(session: Session, rows: int) -> Task:
    """The task with `rows` samples of the search part as holdout, judged by `fidelity`."""
    found = session.journal.once("plan", "answers of the original", lambda: _answers(session))
    score = partial(fidelity, spread=found["spread"], classes=found["classes"])
    few = [(inputs, None) for inputs, _ in _first(session, rows)]
    return replace(session.bench.inner, holdout=few, score=score, metric=None)


def _first(session: Session, rows: int) -> Iterator[tuple[Inputs, Any]]:
    """The first batches of the search part that hold `rows` samples, and their targets."""
    bench = session.bench
    return islice(labelled(bench.inner.holdout), -(-rows // bench.sizes.evaluation))


def _answers(session: Session) -> dict[str, Any]:
    """Which dimension of the original's first output holds class scores (None: it gives something else), and the
    spread of what is compared.
    """
    original, _ = session.bench.graphs.after((), {})
    batches = list(_first(session, _ROWS[0]))
    with torch.no_grad():
        outputs = [original(*inputs) for inputs, _ in batches]
    scored = default_loss(outputs[0], batches[0][1], session.bench.inner) == "kl"
    classes = class_axis(as_tuple(outputs[0])[0].shape, batches[0][1]) if scored else None
    answers = torch.cat([_compared(output, classes) for output in outputs])
    spread = (answers - answers.mean(0)).square().sum(1).mean().clamp(min=1e-12)
    return {"classes": classes, "spread": float(spread)}


def answers_damage(session: Session) -> Callable[[GraphModule], float]:
    """Squared distance of a network's answers from the original's, in units of their spread, on a few samples.

    Returns:
        What tells it of a network; it keeps the original's answers.
    """
    original, _ = session.bench.graphs.after((), {})

    def measure() -> dict[str, int]:
        return {"count": int(min(max(_ROWS_S / _sample_s(session, original), _ROWS[0]), _ROWS[1]))}

    rows = session.once("plan", "rows of damage", measure).get("count", _ROWS[0])
    score = mean_score(on_few(session, rows), original)
    return lambda graph: -score(graph)


def _sample_s(session: Session, graph: GraphModule) -> float:
    """Seconds that a network takes for one of a few samples."""
    few = on_few(session, 16)
    started = time.perf_counter()
    with torch.no_grad():
        count = sum(len(as_tuple(graph(*inputs))[0]) for inputs, _ in few.holdout)
    return (time.perf_counter() - started) / count


def damage_curves(session: Session, graph: GraphModule, stages: list[Stage]) -> Curves:
    """The damage of cutting every group alone, measured as far as time allows; else an assumption, on record as one."""
    groups = sum(len(stage.weights) for stage in stages)
    plan = session.journal.once("plan", "sensitivity", lambda: _plan(session, graph, groups))
    session.decide("sensitivity of every group", plan["rows"] > 0, plan["why"], cost_s=plan["cost_s"])
    if not plan["rows"]:
        return {name: {r: r * r for r in (0.25, 0.5, 0.75)} for stage in stages for name in stage.weights}
    curves: Curves = {}
    for technique in sorted({stage.technique for stage in stages}):
        cutting = Cutting(KINDS[technique], "activation_l2", samples=plan["rows"])
        cache = session.folder / f"sensitivity-{technique}.json"
        started = time.perf_counter()
        curves |= sensitivity(graph, on_few(session, plan["rows"]), cutting, tuple(plan["ratios"]), cache)
        took = {"wall_s": time.perf_counter() - started}
        session.journal.once("sensitivity", technique, took.copy)
    return curves


def _plan(session: Session, graph: GraphModule, groups: int) -> dict[str, Any]:
    sample_s = _sample_s(session, graph)
    may_s = min(_SHARE * session.left_s(), _SECONDS)
    for rows, ratios in _LADDER:
        cost_s = groups * len(ratios) * (rows * sample_s + _OVERHEAD_S)
        if cost_s <= may_s:
            why = f"{groups} groups at {len(ratios)} shares on {rows} samples"
            return {"rows": rows, "ratios": ratios, "cost_s": cost_s, "why": why}
    why = f"{groups} groups would take more than {may_s:.0f} s; damage is taken to grow with the square of the share"
    return {"rows": 0, "ratios": (), "cost_s": 0.0, "why": why}
