"""How fast a recovery may learn: a rate that undoes the network within a few steps is too high for it."""

import math
import time
from typing import Any

from torch.fx import GraphModule

from hasten.distillation.defaults import usual_optimizer, usual_rate
from hasten.errors import Unsupported
from hasten.recipe import make_technique, name_of, options_of
from hasten.search.candidates import Architecture
from hasten.search.graphs import key_of
from hasten.search.memory import give_back
from hasten.search.session import Session
from hasten.training import quiet

_STEPS, _RATES = 10, 3
# A recovery that is not so many times longer has no steps to spare for it.
_LONGER = 5
# The first steps may disturb the answers, but not by more than this many times the damage that is to be repaired.
_UNDOES = 2.0
_LOWER = 0.3


def fit_rate(session: Session, a: Architecture, options: dict[str, Any], steps: int, step_s: float) -> dict[str, float]:
    """The peak learning rate as an option of a recovery: from its usual one down, the highest that does not undo it.

    Ten steps with a rate that is too high leave more damage than there was, and the rest of a short training goes into
    repairing that. So a rate is tried for ten steps, and where the damage doubles, a third of it is.

    Args:
        session: The search.
        a: What recovers.
        options: Of `distill`, without the number of steps.
        steps: Of the recovery.
        step_s: Seconds of each.

    Returns:
        `lr`, or nothing where the usual rate is taken.
    """
    before = [options_of(step) for step in a.steps if name_of(step) == "distill"]
    if before:
        return {"lr": before[-1]["lr"]}
    if steps < _LONGER * _STEPS:
        return {}
    found = session.once("rate", key_of(a.steps), lambda: _found(session, a, options | {"max_steps": steps}, step_s))
    for rate, damage in found.get("tried", []):
        left = "no finite loss" if damage is None else f"a damage of {damage:.3g}"
        why = f"{_STEPS} steps leave {left}, and there was {a.damage:.3g}"
        session.decide(f"learning rate {rate:g} for {a.name}", rate == found["lr"], why)
    return {"lr": found["lr"]} if "lr" in found else {}


def _found(session: Session, a: Architecture, options: dict[str, Any], step_s: float) -> dict[str, Any]:
    """The rate, and the damage after the first steps with each that was tried."""
    session.listener.trying(f"learning rate for {a.name}")
    started = time.perf_counter()
    graph, _ = session.bench.graphs.after(a.steps, {})
    rate = usual_rate(usual_optimizer(graph), options.get("freeze_batch_norm", False))
    tried: list[tuple[float, float | None]] = []
    while len(tried) < _RATES and session.left_s() > _LONGER * _STEPS * step_s:
        damage = _damage_after(session, graph, options | {"lr": rate, "stop_after": _STEPS})
        tried.append((rate, damage))
        if damage is not None and damage <= _UNDOES * a.damage:
            break
        rate *= _LOWER
    found = {"lr": rate} if tried else {}
    return found | {"tried": tried, "wall_s": time.perf_counter() - started}


def _damage_after(session: Session, graph: GraphModule, options: dict[str, Any]) -> float | None:
    """The damage after a training; None where its loss was no longer finite."""
    try:
        with quiet():
            trained = make_technique("distill", options).apply(graph, session.bench.inner)
    except Unsupported:
        return None
    damage = session.damage(trained)
    del trained
    give_back()
    return damage if math.isfinite(damage) else None
