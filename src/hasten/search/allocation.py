"""Which architectures are worth training: measured before they are trained, chosen by what they gain and damage.

An untrained pruned network is as fast as a trained one. So the whole network, cut and rounded, is compiled for the
runtime that won and timed: first all stages by one share, which shows what pruning gives on this runtime at all; then
one stage at a time, which shows where; then the shares that greedy allocation finds for a few goals under a model of
these timings; then what a multi-objective sampler (TPE, Bergstra et al. 2011, by Optuna) proposes next to them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import optuna

from hasten.pruning.sensitivity import Curves, allocate
from hasten.pruning.widths import worthwhile
from hasten.search.stages import Shares, Stage, damage_of

GRID = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
GOALS = (0.8, 0.65, 0.5, 0.38)
"""Costs to reach, relative to the network that is not pruned."""

Measure = Callable[[Shares], float | None]
"""Measured cost of the network cut by shares of its stages, relative to the original model; None if it failed."""


@dataclass(frozen=True)
class CostModel:
    """Cost of a network by the shares its stages lose, from measurements of the whole network.

    Attributes:
        base: Cost of the network that is not pruned.
        curve: What uniform shares save, relative to a uniform half.
        saved: What a half of every stage saves; they add up to what a uniform half saves.
    """

    base: float
    curve: dict[float, float]
    saved: dict[str, float]

    def __call__(self, shares: Shares) -> float:
        """Cost at `shares`; never below a hundredth of the base."""
        gained = sum(self.saved[name] * damage_of(self.curve, share) for name, share in shares.items())
        return max(self.base - gained, self.base / 100)


@dataclass(frozen=True)
class Point:
    """Shares with their measured cost and their predicted damage."""

    shares: dict[str, float]
    cost: float
    damage: float


def uniform(stages: list[Stage], share: float) -> dict[str, float]:
    """The same share of every stage."""
    return {stage.name: share for stage in stages}


def fit(stages: list[Stage], base: float, measure: Measure, shares: Sequence[float], single: bool) -> CostModel | None:
    """Measure uniform `shares` and, with `single`, a half of one stage at a time; None if pruning does not pay here."""
    costs = {share: measure(uniform(stages, share)) for share in shares}
    widths = {100: base} | {round(100 * (1 - share)): cost for share, cost in costs.items() if cost is not None}
    # A share that leaves a width that is no faster than a wider one is no use; the curve passes over it.
    kept = {1 - width / 100: widths[width] for width in worthwhile(widths) if width < 100}
    half = damage_of({share: base - cost for share, cost in kept.items()}, 0.5)
    if half <= 0:
        return None
    curve = {share: (base - cost) / half for share, cost in kept.items()}
    alone = {stage.name: half / len(stages) for stage in stages}
    if single and len(stages) > 1:
        found = {stage.name: measure({stage.name: 0.5}) for stage in stages}
        gains = {name: max(base - cost, 0.0) if cost is not None else 0.0 for name, cost in found.items()}
        if sum(gains.values()) > 0:
            alone = {name: half * gain / sum(gains.values()) for name, gain in gains.items()}
    return CostModel(base, curve, alone)


def explore(model: CostModel, curves: Curves, measure: Measure, probes: int, seed: int) -> list[Point]:
    """Points on the front of measured cost and predicted damage, cheapest first.

    Args:
        model: Where to begin.
        curves: Damage by stage and share.
        measure: Measures a network that is cut but not trained.
        probes: How many may be measured.
        seed: Of the sampler.
    """
    study = _study(seed)
    space: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.CategoricalDistribution((0.0, *GRID)) for name in curves
    }
    for goal in GOALS:
        shares, _ = allocate(curves, model, goal * model.base)
        study.enqueue_trial({name: shares.get(name, 0.0) for name in curves}, skip_if_exists=True)
    points: dict[tuple[tuple[str, float], ...], Point] = {}
    for _ in range(4 * probes):
        if len(points) >= probes:
            break
        trial = study.ask(space)
        shares = {name: float(share) for name, share in trial.params.items() if share > 0}
        key = tuple(sorted(shares.items()))
        if not shares or key in points:
            known = points.get(key)
            study.tell(trial, [known.cost, known.damage] if known else [model.base, 0.0])
            continue
        cost = measure(shares)
        if cost is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        damage = sum(damage_of(curves[name], share) for name, share in shares.items())
        study.tell(trial, [cost, damage])
        points[key] = Point(shares, cost, damage)
    return pareto(list(points.values()))


def nearer(model: CostModel, curves: Curves, measured: Mapping[float, float], cost: float) -> dict[str, float]:
    """Shares for one cost, with the model corrected by how far it was off at the nearest measured point.

    Args:
        model: From `fit`.
        curves: Damage by stage and share.
        measured: Measured cost by the cost that the model gave.
        cost: What to reach.
    """
    off = min(measured.items(), key=lambda pair: abs(math.log(pair[1] / cost)), default=(1.0, 1.0))
    shares, _ = allocate(curves, model, cost * off[0] / off[1])
    return shares


def pareto(points: list[Point]) -> list[Point]:
    """Those that no other beats in both cost and damage, cheapest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, p.damage)):
        if not kept or point.damage < kept[-1].damage:
            kept.append(point)
    return kept


def _study(seed: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=len(GOALS))
    return optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
