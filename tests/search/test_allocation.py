"""The model of measured costs, and the search over shares with it, on networks whose true cost is known."""

import math

import pytest

from hasten.search.allocation import GRID, CostModel, Point, explore, fit, nearer, pareto, uniform
from hasten.search.stages import Shares, Stage

STAGES = [Stage(name, "prune_filters", 8, {f"{name}.conv": 1}) for name in ("early", "late")]
BASE = 1.0
SHARES = (0.25, 0.5, 0.75)
# Cutting the late stage saves four times as much and does half the damage.
SAVES = {"early": 0.15, "late": 0.6}
CURVES = {"early": {s: 0.2 * s for s in GRID}, "late": {s: 0.1 * s for s in GRID}}


def linear(shares: Shares) -> float:
    return BASE - sum(SAVES[name] * share for name, share in shares.items())


def test_a_linear_cost_is_modelled_exactly() -> None:
    model = fit(STAGES, BASE, linear, SHARES, single=True)
    assert model is not None
    for shares in ({"early": 0.5}, {"late": 0.25}, {"early": 0.75, "late": 0.5}):
        assert model(shares) == pytest.approx(linear(shares))


def test_shares_that_are_no_faster_are_passed_over() -> None:
    """A staircase: a quarter less gives nothing, half and more do."""
    model = fit(STAGES, BASE, lambda shares: BASE - 0.4 * (math.fsum(shares.values()) / 2 >= 0.5), SHARES, single=False)
    assert model is not None
    assert model.curve == {0.5: 1.0}  # three quarters are no faster than half


def test_pruning_that_does_not_pay_is_told() -> None:
    assert fit(STAGES, BASE, lambda shares: BASE * 1.05, SHARES, single=True) is None
    assert fit(STAGES, BASE, lambda shares: None, SHARES, single=True) is None


def test_the_front_prefers_the_stage_that_gains_more_for_less_damage() -> None:
    model = fit(STAGES, BASE, linear, SHARES, single=True)
    assert model is not None
    points = explore(model, CURVES, linear, probes=12, seed=0)
    assert points == pareto(points)
    assert len(points) >= 3
    fast = min((p for p in points if p.cost <= 0.8), key=lambda p: p.damage)
    assert fast.shares.get("late", 0.0) > fast.shares.get("early", 0.0)
    assert all(p.cost == pytest.approx(linear(p.shares)) for p in points)
    assert explore(model, CURVES, linear, probes=12, seed=0) == points


def test_a_model_that_was_off_is_corrected() -> None:
    model = CostModel(BASE, {0.25: 0.5, 0.5: 1.0, 0.75: 1.5}, {"early": 0.075, "late": 0.3})
    # Everything is 1.25 times as slow as the model says.
    plain = nearer(model, CURVES, {}, 0.75)
    corrected = nearer(model, CURVES, {0.6: 0.75}, 0.75)
    assert model(corrected) < model(plain)


def test_pareto_drops_what_is_beaten_in_both() -> None:
    points = [Point({}, 1.0, 0.0), Point({}, 0.5, 0.5), Point({}, 0.6, 0.6), Point({}, 0.5, 0.4)]
    assert [(p.cost, p.damage) for p in pareto(points)] == [(0.5, 0.4), (1.0, 0.0)]


def test_uniform_names_every_stage() -> None:
    assert uniform(STAGES, 0.5) == {"early": 0.5, "late": 0.5}
