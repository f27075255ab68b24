"""The certificate keeps its word: simulated many times, it rarely passes what it must not."""

import functools
import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from hasten.measure import certificate
from hasten.measure.certificate import (
    BCA,
    CONSTANT,
    EXACT,
    Certificate,
    certify,
    certify_in_order,
    paired_proportions_bound,
    paired_proportions_p_value,
    samples_needed,
    upper_bound,
)

RUNS = 2000
SAMPLES = 700


def _share_passed(loss_rate: float, gain_rate: float, max_drop: float) -> float:
    rng = np.random.default_rng(0)
    draws = rng.multinomial(SAMPLES, [loss_rate, gain_rate, 1 - loss_rate - gain_rate], size=RUNS)
    outcomes, counts = np.unique(draws[:, :2], axis=0, return_counts=True)
    passed = [
        paired_proportions_p_value(int(lost), int(gained), SAMPLES, max_drop) <= 0.05 for lost, gained in outcomes
    ]
    return float(counts[np.array(passed)].sum() / RUNS)


@pytest.mark.parametrize(("loss_rate", "gain_rate"), [(0.0125, 0.0005), (0.02, 0.008), (0.05, 0.038)])
def test_a_model_beyond_the_budget_passes_in_at_most_5_percent_of_runs(loss_rate: float, gain_rate: float) -> None:
    assert loss_rate - gain_rate > 0.01
    assert _share_passed(loss_rate, gain_rate, max_drop=0.01) <= 0.05


def test_a_truly_equal_model_passes_in_most_runs() -> None:
    assert _share_passed(0.002, 0.002, max_drop=0.01) > 0.9


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 300))
@settings(deadline=None, max_examples=60)
def test_the_bound_is_above_the_estimate_and_grows_with_losses(lost: int, gained: int, same: int) -> None:
    n = lost + gained + same
    if n == 0:
        return
    bound = paired_proportions_bound(lost, gained, n, 0.05)
    assert bound >= (lost - gained) / n - 1e-6
    if same:
        assert paired_proportions_bound(lost + 1, gained, n, 0.05) >= bound - 2e-5


def test_without_any_change_the_bound_is_the_rule_of_three() -> None:
    # With no discordant pair the p-value is (1 - drop)^n at its worst.
    assert paired_proportions_bound(0, 0, 1000, 0.05) == pytest.approx(1 - 0.05 ** (1 / 1000), abs=3e-5)


def test_samples_needed_is_just_enough() -> None:
    needed = samples_needed(0.01, 0.05)
    assert needed == 299  # (1 - 0.01)^299 < 0.05 <= (1 - 0.01)^298
    assert paired_proportions_bound(0, 0, needed, 0.05) <= 0.01 + 2e-5


@pytest.mark.parametrize(("max_drop", "level", "needed"), [(0.02, 0.025, 191), (0.5, 0.25, 2), (1.0, 0.05, 1)])
def test_samples_needed_is_the_fewest(max_drop: float, level: float, needed: int) -> None:
    assert samples_needed(max_drop, level) == needed
    assert paired_proportions_p_value(0, 0, needed, max_drop) <= level
    if needed > 1:
        assert paired_proportions_p_value(0, 0, needed - 1, max_drop) > level


def test_other_scores_get_a_bootstrap_bound_that_covers() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        drops = rng.exponential(0.02, 200) - 0.01
        bound, method = upper_bound(np.zeros(200), -drops, 0.05)
        assert method == BCA
        covered += bound >= 0.01
    # The true mean is 0.01; 95% nominal, allowed down to where chance alone rarely takes it.
    assert covered >= stats.binom.ppf(0.001, 60, 0.93)


def test_too_few_other_scores_certify_nothing() -> None:
    bound, _ = upper_bound(np.linspace(0, 1, 20), np.linspace(0, 0.9, 20), 0.05)
    assert bound == float("inf")


def test_constant_drops_are_bounded_by_themselves() -> None:
    bound, method = upper_bound(np.full(60, 0.9), np.full(60, 0.7), 0.05)
    assert bound == pytest.approx(0.2)
    assert method == CONSTANT


def test_finalists_share_the_error() -> None:
    baseline = np.ones(1000)
    candidate = baseline.copy()
    candidate[:3] = 0
    rows = np.arange(1000)
    alone = certify(baseline, candidate, max_drop=0.01, confidence=0.95, indices=rows)
    among = certify(baseline, candidate, max_drop=0.01, confidence=0.95, indices=rows, finalists=3, share=1 / 3)
    assert alone.method == EXACT
    assert alone.drop == pytest.approx(0.003)
    assert among.upper_bound > alone.upper_bound
    assert among.error == pytest.approx(0.05 / 3)
    assert alone.passed
    assert alone.holdout_sha256 == among.holdout_sha256
    other = certify(baseline, candidate, max_drop=0.01, confidence=0.95, indices=rows[::-1])
    assert other.holdout_sha256 != alone.holdout_sha256


ROWS = np.arange(1000)


def _losing(count: int) -> np.ndarray:
    candidate = np.ones(1000)
    candidate[:count] = 0
    return candidate


def _in_order(*losses: int, **about: Any) -> list[Certificate]:
    candidates = [_losing(count) for count in losses]
    return certify_in_order(np.ones(1000), candidates, max_drop=0.01, confidence=0.95, indices=ROWS, **about)


def test_one_that_passes_hands_its_share_on() -> None:
    assert [c.error for c in _in_order(0, 0, 30)] == pytest.approx([0.05 / 3, 2 * 0.05 / 3, 0.05])
    assert [c.error for c in _in_order(0, 30, 0)] == pytest.approx([0.05 / 3, 2 * 0.05 / 3, 0.05 / 3])
    assert [c.error for c in _in_order(30, 0, 0)] == pytest.approx([0.05 / 3, 0.05 / 3, 2 * 0.05 / 3])
    assert [c.error for c in _in_order(0, 0, among=4, share=0.5)] == pytest.approx([0.05 / 8, 0.05 / 4])
    assert [c.passed for c in _in_order(0, 30, 0)] == [True, False, True]
    assert {c.confidence for c in _in_order(0, 30, 0)} == {0.95}
    assert _in_order() == []
    # Four losses are certified with the whole error, and not with a half of it.
    assert [c.passed for c in _in_order(0, 4)] == [True, True]
    assert [c.passed for c in _in_order(30, 4)] == [False, False]


def test_bounds_of_several_hold_together() -> None:
    """Where all passed, each has that of its own share; where one did not, the others have the budget."""
    own = [paired_proportions_bound(losses, 0, 1000, 0.025) for losses in (0, 3)]
    assert [c.upper_bound for c in _in_order(0, 3)] == own
    assert _in_order(0, 4)[1].upper_bound == 0.01  # which its own share alone would not show
    failing = _in_order(0, 30)
    assert failing[0].upper_bound == 0.01
    assert failing[1].upper_bound == paired_proportions_bound(30, 0, 1000, 0.05)


@pytest.mark.parametrize("good_first", [True, False])
def test_candidates_in_order_keep_the_error_together(good_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A good candidate and two just beyond the limit, simulated: how often any of the two passes."""
    monkeypatch.setattr(certificate, "paired_proportions_bound", functools.cache(paired_proportions_bound))
    rng, n, runs, wrong = np.random.default_rng(0), 600, 400, 0
    rates = (0.0, 0.0201, 0.0201) if good_first else (0.0201, 0.0201, 0.0)
    baseline, rows = np.ones(n), np.arange(n)
    for _ in range(runs):
        candidates = [(rng.random(n) >= rate).astype(float) for rate in rates]
        found = certify_in_order(baseline, candidates, max_drop=0.02, confidence=0.8, indices=rows)
        wrong += any(c.passed for c, rate in zip(found, rates, strict=True) if rate)
    assert 0 < wrong / runs < 0.2 + 2 * np.sqrt(0.2 * 0.8 / runs)


def test_the_record_says_what_was_tested() -> None:
    baseline, candidate = np.ones(400), np.ones(400)
    candidate[:4] = 0
    rows = np.arange(400)
    found = certify(baseline, candidate, max_drop=0.05, confidence=0.9, indices=rows).to_json()
    assert found.pop("upper_bound") == paired_proportions_bound(4, 0, 400, 1 - 0.9)
    assert found.pop("error") == pytest.approx(0.1)
    assert found == {
        "n": 400,
        "baseline_score": 1.0,
        "score": 0.99,
        "drop": pytest.approx(0.01),
        "max_drop": 0.05,
        "confidence": 0.9,
        "finalists": 1,
        "method": EXACT,
        "holdout_sha256": hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest(),
        "passed": True,
        "target": "labels",
        "seed": 0,
    }
    other = certify(baseline, candidate, max_drop=0.05, confidence=0.9, indices=rows, target="original", seed=7)
    assert (other.target, other.seed) == ("original", 7)


def test_a_bound_at_the_budget_passes_and_one_above_does_not() -> None:
    baseline, candidate = np.full(60, 0.9), np.full(60, 0.7)
    bound, _ = upper_bound(baseline, candidate, 0.05)
    rows = np.arange(60)
    assert certify(baseline, candidate, max_drop=bound, confidence=0.95, indices=rows).passed
    assert not certify(baseline, candidate, max_drop=np.nextafter(bound, 0), confidence=0.95, indices=rows).passed


def test_losses_and_gains_are_told_apart() -> None:
    baseline = np.array([1] * 60 + [0] * 40)
    candidate = baseline.copy()
    candidate[:5], candidate[60:62] = 0, 1
    bound, method = upper_bound(baseline, candidate, 0.05)
    assert (bound, method) == (paired_proportions_bound(5, 2, 100, 0.05), EXACT)
    assert upper_bound(candidate, baseline, 0.05)[0] == paired_proportions_bound(2, 5, 100, 0.05)


def test_the_record_does_not_depend_on_how_row_numbers_are_stored() -> None:
    scores, rows = np.ones(400), np.arange(400)
    found = [
        certify(scores, scores, max_drop=0.05, confidence=0.9, indices=rows.astype(kind)).holdout_sha256
        for kind in ("<i4", "<i8", ">i8")
    ]
    assert len(set(found)) == 1


def _tango(lost: int, gained: int, n: int, drop: float) -> float:
    """Tango's statistic with the restricted likelihood maximized numerically, not by his formula."""

    def negative(gain: float) -> float:
        rates = np.array([gain + drop, gain, 1 - 2 * gain - drop])
        counts = np.array([lost, gained, n - lost - gained])
        return -float(np.sum(counts[counts > 0] * np.log(np.maximum(rates[counts > 0], 1e-300))))

    ends = max(0.0, -drop), (1 - drop) / 2
    found = optimize.minimize_scalar(negative, bounds=ends, method="bounded", options={"xatol": 1e-12})
    gain = min([*ends, found.x], key=negative)
    return float((lost - gained - n * drop) / np.sqrt(max(n * (2 * gain + drop * (1 - drop)), 1e-12)))


@pytest.mark.parametrize(
    ("lost", "gained", "n", "drop"),
    [
        (1, 0, 14, 0.3),
        (2, 1, 14, 0.3),
        (0, 3, 12, 0.1),
        (4, 2, 12, 0.25),
        (3, 3, 10, 0.2),
        (1, 5, 12, -0.1),
        (0, 0, 9, 0.2),
    ],
)
def test_the_p_value_is_the_worst_probability_of_a_result_at_least_as_good(
    lost: int, gained: int, n: int, drop: float
) -> None:
    observed = _tango(lost, gained, n, drop)
    results = [(a, b) for a in range(n + 1) for b in range(n + 1 - a) if _tango(a, b, n, drop) <= observed + 1e-5]
    assert (lost, gained) in results
    losses, gains = np.array(results).T
    counts = np.stack([losses, gains, n - losses - gains], 1)
    rates = np.linspace(max(0.0, -drop) + 1e-9, (1 - drop) / 2 - 1e-9, 1500)
    worst = max(stats.multinomial.pmf(counts, n, [r + drop, r, 1 - 2 * r - drop]).sum() for r in rates)
    assert paired_proportions_p_value(lost, gained, n, drop) == pytest.approx(worst, abs=0.002)


@pytest.mark.parametrize(("lost", "gained", "n"), [(0, 0, 40), (3, 1, 60), (1, 6, 60), (0, 5, 5), (20, 3, 50)])
def test_the_bound_is_where_the_p_value_falls_to_the_level(lost: int, gained: int, n: int) -> None:
    bound = paired_proportions_bound(lost, gained, n, 0.1)
    assert paired_proportions_p_value(lost, gained, n, bound) <= 0.1
    assert paired_proportions_p_value(lost, gained, n, bound - 5e-5) > 0.1


def test_the_bound_stays_between_the_estimate_and_one() -> None:
    assert paired_proportions_bound(5, 0, 5, 0.05) == 1.0
    assert paired_proportions_bound(3, 1, 20, 0.95) == pytest.approx(0.1)  # more error than half: the estimate


def test_fifty_other_scores_are_enough() -> None:
    drops = np.random.default_rng(0).normal(0.1, 0.05, 50)
    bound, method = upper_bound(drops, np.zeros(50), 0.05)
    assert method == BCA
    # Nearly normal drops: the bootstrap bound is close to the normal one, and on its side.
    assert bound == pytest.approx(drops.mean() + 1.645 * drops.std() / np.sqrt(50), abs=0.002)
    assert upper_bound(drops[:49], np.zeros(49), 0.05) == (float("inf"), BCA)
