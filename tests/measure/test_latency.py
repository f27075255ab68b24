"""What timings become: milliseconds, percentiles and ratios of known times, with programs that take turns."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hasten.measure import latency
from hasten.measure.artifacts import seconds_to_time
from hasten.measure.latency import Latency, _still_gains, _summary, best_throughput, bootstrap_interval, compare


def test_seconds_become_milliseconds_of_all_calls() -> None:
    calls = np.arange(1, 102) / 1000  # 1 to 101 ms
    found = _summary([calls[:40], calls[40:]], [calls[:40], calls[40:]], batch=8)
    assert found.median_ms == pytest.approx(51)
    assert found.p90_ms == pytest.approx(91)
    assert found.p99_ms == pytest.approx(100)
    assert (found.batch, found.turns, found.calls) == (8, 2, 101)
    assert (found.ratio, found.ratio_low, found.ratio_high) == (1, 1, 1)


def test_the_ratio_is_the_median_over_turns_of_the_baseline_s_median_to_this_one_s() -> None:
    baseline = [np.array([6.0, 6.0, 90.0]), np.array([8.0]), np.array([9.0, 9.0])]
    own = [np.array([3.0, 1.0, 3.0]), np.array([1.0]), np.array([3.0, 3.0])]
    found = _summary(own, baseline, batch=1)
    assert found.ratio == pytest.approx(3)  # of 2, 8 and 3
    assert (found.ratio_low, found.ratio_high) == (2, 8)


def test_another_baseline_scales_the_ratios_alone() -> None:
    found = Latency(4, 1.0, 2.0, 3.0, 2.0, 1.75, 2.5, 9, 100).scaled(3)
    assert found == Latency(4, 1.0, 2.0, 3.0, 6.0, 5.25, 7.5, 9, 100)
    assert found.to_json()["ratio_low"] == 5.25


class Recorded:
    """A program that takes `seconds` per call, whatever it is asked, and notes when it was."""

    def __init__(self, name: str, seconds: float, asked: list[tuple[str, str, int]]) -> None:
        self.name, self.seconds, self.asked = name, seconds, asked

    def warm_up(self, inputs: Any, batch: int) -> int:
        self.asked.append((self.name, "warm_up", batch))
        return 1

    def time_calls(self, inputs: Any, batch: int, seconds: float, least: int = 5) -> np.ndarray:
        assert seconds > 0
        self.asked.append((self.name, "time", batch))
        return np.full(4, self.seconds)


def test_programs_take_turns_in_alternating_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_SETTLE_SECONDS", 0.0)
    asked: list[tuple[str, str, int]] = []
    workers: Any = {name: Recorded(name, seconds, asked) for name, seconds in (("a", 0.25), ("b", 0.5), ("c", 0.125))}
    found = compare(workers, "b", [], batch=2, turns=3)
    assert asked[:3] == [("a", "warm_up", 2), ("b", "warm_up", 2), ("c", "warm_up", 2)]
    assert [name for name, _, _ in asked[3:]] == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]
    assert {(what, batch) for _, what, batch in asked[3:]} == {("time", 2)}
    assert {name: made.ratio for name, made in found.items()} == {"a": 2, "b": 1, "c": 4}
    assert {name: made.median_ms for name, made in found.items()} == {"a": 250, "b": 500, "c": 125}
    assert {(made.batch, made.turns, made.calls) for made in found.values()} == {(2, 3, 12)}


def test_a_turn_is_timed_and_settled() -> None:
    """What a session is told its timings will take; 0.12 s are timed and 0.02 s waited before."""
    assert pytest.approx(0.14) == latency.SECONDS_PER_TURN
    assert seconds_to_time(3, 10) == pytest.approx(3 * (0.5 + 1.4))


def test_the_interval_is_as_wide_as_the_median_is_uncertain() -> None:
    values = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap_interval(values)
    # The median of normal values has a standard deviation of sqrt(pi / 2 / n).
    width = np.sqrt(np.pi / 2 / 400)
    assert high - low == pytest.approx(2 * 1.96 * width, rel=0.25)
    assert (low + high) / 2 == pytest.approx(np.median(values), abs=width)
    narrow_low, narrow_high = bootstrap_interval(values, confidence=0.5)
    assert narrow_high - narrow_low == pytest.approx(2 * 0.674 * width, rel=0.3)
    assert bootstrap_interval(values) == (low, high)


def test_the_interval_ends_where_its_tails_begin() -> None:
    """Of five values, the median of a resample is the lowest with probability P(binomial(5, 1/5) >= 3) = 0.058."""
    values = np.arange(1.0, 6.0)
    assert bootstrap_interval(values, confidence=0.9) == (1, 5)
    assert bootstrap_interval(values, confidence=0.87) == (2, 4)


def _at_rates(rates: dict[int, float], asked: list[int]) -> Any:
    """A program of so many samples per second by batch; it never takes its time."""

    def time_calls(inputs: Any, batch: int, seconds: float, least: int) -> np.ndarray:
        asked.append(batch)
        assert (seconds, least) == (2 * latency._TURN_SECONDS, 3)
        return np.full(least, batch / rates[batch])

    return SimpleNamespace(time_calls=time_calls)


@pytest.mark.parametrize(
    ("rates", "best", "timed"),
    [
        ({1: 100.0, 2: 200.0, 4: 400.0, 8: 800.0}, 8, 4),  # as far as `largest`
        ({1: 100.0, 2: 104.0, 4: 104.0, 8: 104.0}, 2, 4),  # less than 97% at 1; nothing gained twice at 8
        ({1: 100.0, 2: 102.0, 4: 102.5, 8: 999.0}, 1, 3),  # ends before 8
        ({1: 100.0, 2: 90.0, 4: 120.0, 8: 121.0}, 4, 4),  # one doubling that loses does not end it
        ({1: 100.0, 2: 99.0, 4: 98.0, 8: 999.0}, 1, 3),
    ],
)
def test_throughput_is_the_best_and_the_smallest_batch_near_it(rates: dict[int, float], best: int, timed: int) -> None:
    asked: list[int] = []
    made = best_throughput({"a": _at_rates(rates, asked)}, "a", [], largest=8)["a"]
    assert asked == [1, 2, 4, 8][:timed]
    assert made.batch == best
    assert made.samples_per_s == pytest.approx(max(rates[batch] for batch in asked))


def test_throughput_is_compared_with_the_baseline() -> None:
    slow, fast = ({batch: rate * batch for batch in (2, 4)} for rate in (50.0, 150.0))
    workers = {"slow": _at_rates(slow, []), "fast": _at_rates(fast, [])}
    found = best_throughput(workers, "slow", [], smallest=2, largest=4)
    assert {name: made.ratio for name, made in found.items()} == pytest.approx({"slow": 1, "fast": 3})
    assert found["fast"].to_json() == {"batch": 4, "samples_per_s": 600, "ratio": 3}
    assert best_throughput(workers, "slow", [], smallest=2, largest=4, limit_s=0.0)["fast"].batch == 2


@pytest.mark.parametrize(
    ("rates", "gains"),
    [
        ([100, 100], True),
        ([100, 103, 103], False),
        ([100, 102, 104], True),
        ([100, 104, 102], True),
        ([100, 104, 104, 105], False),
    ],
)
def test_two_doublings_without_three_percent_end_the_search(rates: list[float], gains: bool) -> None:
    assert _still_gains({2**i: rate for i, rate in enumerate(rates)}) is gains
