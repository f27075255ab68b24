"""How a race is planned, and who goes on."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.measure.latency import Latency
from hasten.recipe import Recipe, make_target, make_technique
from hasten.search.candidates import Architecture, Finish
from hasten.search.finalists import Counts
from hasten.search.heat import Recovery, Standing, left_after, plan_heat, promise, recovers, worth, worth_first
from hasten.search.trial import Trial


def _sure(merit: float) -> Standing:
    return Standing(((merit, 1.0),))


SURE = _sure(1.0)


def test_what_may_fail_leaves_something_to_gain_below_it() -> None:
    """Solar cells: 15.7x that is certified or not, int8 at 7.8x behind it."""
    standing = Standing.of([(7.8, 1.0), (15.7, 0.56)])
    assert standing.best == 15.7
    assert standing.gain(16.8) == pytest.approx(0.56 * math.log(16.8 / 15.7) + 0.44 * math.log(16.8 / 7.8))
    assert standing.gain(11.8) == pytest.approx(0.44 * math.log(11.8 / 7.8))
    assert standing.gain(7.0) == 0.0
    assert standing.won(15.7).gain(11.8) == 0.0
    assert Standing.of([(3.0, 0.9), (4.0, 0.1)]).best == 3.0
    assert Standing.of([(4.0, 0.1)]).best == 4.0
    # Where nothing is sure, the original stands behind it; judged merits may be below it.
    assert Standing.of([(4.0, 0.5)]).gain(2.0) == pytest.approx(0.5 * math.log(2.0))
    assert Standing.of([(0.5, 0.5)]).gain(0.8) == pytest.approx(math.log(0.8 / 0.5))
    assert Standing(()).gain(2.0) == pytest.approx(math.log(2.0))


@given(
    left_s=st.floats(0, 1e5),
    step_s=st.floats(0.001, 10),
    overhead_s=st.floats(0.1, 100),
    per_epoch=st.integers(1, 5000),
    available=st.integers(1, 20),
)
def test_a_race_fits_its_time_and_trains_everyone_fairly(
    left_s: float, step_s: float, overhead_s: float, per_epoch: int, available: int
) -> None:
    heat = plan_heat(left_s, step_s, overhead_s, per_epoch, available)
    assert heat.cost_s <= left_s + 1e-6
    assert heat.entrants <= available
    if heat.entrants:
        assert heat.steps >= 20
        assert heat.entrants == 2 ** (heat.rungs - 1)


def test_more_time_brings_more_entrants() -> None:
    entrants = [plan_heat(left, 0.1, 5.0, 30, 10).entrants for left in (1, 20, 100, 300, 1000)]
    assert entrants == sorted(entrants)
    assert entrants[0] == 0
    assert entrants[-1] == 8


def _trial(merit: float, drop: float) -> Trial:
    latency = Latency(1, 1.0, 1.0, 1.0, merit, merit, merit, 1, 1)
    return Trial(1, Recipe((), make_target("null")), latency=latency, score=1 - drop, drop=drop, noise=0.05)


def test_promise_weighs_speed_against_the_chance_to_pass() -> None:
    def of(merit: float, drop: float, rungs_left: int = 0) -> float:
        return promise(
            _trial(merit, drop), SURE, max_drop=0.01, counts=Counts(500, 1500, 1 / 500), rungs_left=rungs_left
        )

    assert of(1.5, 0.005) > of(1.5, 0.02)
    assert of(1.5, 0.005) > of(1.2, 0.005)
    assert of(1.2, 0.0) > of(3.0, 0.2)
    # More training to come makes a drop less bad.
    assert of(1.5, 0.02, rungs_left=2) > of(1.5, 0.02)
    assert promise(Trial(1, Recipe((), make_target("null")), failure="x"), SURE, 0.01, Counts(500, 1500, 0.0), 0) == 0.0


def test_something_bold_goes_first_if_something_sure_can_follow() -> None:
    bold, sure = (1.63, 0.616), (1.27, 0.142)

    def after(network: tuple[float, float], steps: int) -> tuple[float, float]:
        return network[0], recovers(network[1], steps)

    def ahead(then: int) -> tuple[float, float]:
        def expected(pair: tuple[tuple[float, float], tuple[float, float]]) -> float:
            return worth_first(after(pair[0], 477), [after(pair[1], then)] if then else [], SURE)

        return max(((bold, sure), (sure, bold)), key=expected)[0]

    assert ahead(then=0) == sure
    assert ahead(then=300) == bold
    assert worth_first(after(sure, 477), [], SURE) == worth(sure[0], SURE, recovers(sure[1], 477))


def test_what_has_been_trained_is_judged_by_what_that_left() -> None:
    """Half the depth of a sentence encoder, 13x and certified with a chance of a fifth, against a quarter cut, 8x."""
    finish = Finish((), make_target("null"))
    trained_on = Architecture("deep", (), 13.4, 0.29, finish, chance=0.2)
    fresh = Architecture("cut", (), 8.0, 0.25, finish)
    assert trained_on.recovers(435) == 0.2
    assert fresh.recovers(435) == recovers(0.25, 435)
    assert worth(8.0, _sure(6.3), fresh.recovers(435)) > worth(13.4, _sure(6.3), trained_on.recovers(435))
    assert left_after(0.01, 1) == pytest.approx(0.006)
    assert left_after(-0.01, 1) == -0.01


def test_little_training_prefers_little_damage_and_much_training_speed() -> None:
    mild, harsh = (1.3, 0.1), (2.0, 0.6)

    def ahead(steps: int) -> tuple[float, float]:
        return max((mild, harsh), key=lambda x: worth(x[0], SURE, recovers(x[1], steps)))

    assert ahead(20) == mild
    assert ahead(2000) == harsh
    assert recovers(0.0, 1) == 1.0
    assert recovers(0.2, 50) < recovers(0.2, 500) < 1
    assert recovers(0.3, 50) < recovers(0.2, 50)


def test_two_searches_that_were_measured_go_the_way_that_worked() -> None:
    """(merit, damage): on solar cells the boldest kept its accuracy; on ResNet-56 two failed before a mild one."""

    def order(field: dict[str, tuple[float, float]], best: float, steps: int, seen: list[Recovery]) -> list[str]:
        return sorted(
            field, key=lambda x: worth(field[x][0], _sure(best), recovers(field[x][1], steps, seen)), reverse=True
        )

    solar = {"0.58 of the pixels": (18.5, 0.30), "0.72 of the pixels": (12.5, 0.125), "half the filters": (17.7, 0.8)}
    assert order(solar, 8.4, 182, [])[0] == "0.58 of the pixels"
    resnet = {"0.58 of the pixels": (29.1, 0.64), "a quarter of the blocks": (22.7, 0.37)}
    half_the_blocks, fewer_pixels = Recovery(0.79, 545, kept=False), Recovery(0.64, 591, kept=False)
    assert order(resnet, 18.6, 545, [])[0] == "0.58 of the pixels"
    assert order(resnet, 18.6, 600, [half_the_blocks, fewer_pixels])[0] == "a quarter of the blocks"


def test_what_refitting_left_is_harder_to_repair_than_as_much_fresh_damage() -> None:
    """ResNet-56 in 120 steps: a quarter of the blocks less (0.29) ended at 0.06, 37% of the filters (0.35) at 0.22."""
    finish, options = Finish((), make_target("null")), {"ratio": 0.375, "reconstruct": 128}
    fewer = Architecture("blocks", (make_technique("shrink", {"depth": 0.75}),), 1.5, 0.29, finish, measured=True)
    narrower = Architecture("cut", (make_technique("prune_filters", options),), 1.6, 0.346, finish, measured=True)
    assert fewer.to_repair == 0.29
    assert narrower.to_repair == pytest.approx(0.692)
    assert worth(1.5, SURE, fewer.recovers(120)) > worth(1.6, SURE, narrower.recovers(120))


def test_what_was_seen_tells_how_much_damage_this_network_recovers_from() -> None:
    """ResNet-56: half the depth stayed 0.027 short after 516 steps; next comes what is a little slower and surer."""
    failed, held = Recovery(0.674, 516, kept=False), Recovery(0.674, 516, kept=True)
    before = recovers(0.162, 500)
    assert recovers(0.162, 500, [failed]) < before < recovers(0.162, 500, [held])
    assert recovers(0.674, 516, [failed] * 30) < 0.25
    assert recovers(0.25, 100) == pytest.approx(recovers(0.5, 400))  # with the root of the training
    lower_resolution, fewer_blocks = (1.2624, 0.238), (1.2484, 0.162)

    def ahead(seen: list[Recovery]) -> tuple[float, float]:
        return max((lower_resolution, fewer_blocks), key=lambda x: worth(x[0], SURE, recovers(x[1], 500, seen)))

    assert ahead([failed]) == fewer_blocks
