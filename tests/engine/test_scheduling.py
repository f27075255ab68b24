"""The scheduling rules on simulated devices under a virtual clock: nothing here is a measurement."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.engine.placement import share_of_twins
from hasten.engine.service import RunningQuantile, ServiceModel
from hasten.engine.simulate import SimulatedDevice, simulate
from hasten.engine.work import Limits


def bed(*row_ms: float, largest: int = 8, base_ms: float = 0.0, jitter: float = 0.0) -> list[SimulatedDevice]:
    return [
        SimulatedDevice(f"simulated {i}", base_ms / 1e3, ms / 1e3, largest, jitter=jitter)
        for i, ms in enumerate(row_ms)
    ]


def lower_bound_s(devices: list[SimulatedDevice], rows: int) -> float:
    return rows / sum(x.lanes * x.largest / (x.base_s + x.row_s * x.largest) for x in devices)


@pytest.mark.parametrize(
    ("devices", "rows", "limit"),
    [
        (bed(1, 4), 400, 1.05),
        (bed(1, 4), 48, 1.12),
        (bed(1, 10), 128, 1.12),
        (bed(1, 2, 5), 400, 1.05),
        (bed(1, 4, base_ms=0.5), 400, 1.05),
        (bed(1, 1, 1, 1), 400, 1.05),
    ],
)
def test_offline_makespan_is_near_the_lower_bound(devices: list[SimulatedDevice], rows: int, limit: float) -> None:
    outcome = simulate(devices, [(0.0, rows)], offline=True)
    assert outcome.answers == [1]
    assert 0.999 <= outcome.end_s / lower_bound_s(devices, rows) <= limit


def test_offline_makespan_under_jitter() -> None:
    devices = bed(1, 2, 5, jitter=0.2)
    ratios = [
        simulate(devices, [(0.0, 800)], offline=True, seed=seed).end_s / lower_bound_s(devices, 800)
        for seed in range(9)
    ]
    assert np.median(ratios) / math.exp(0.02) <= 1.05  # the mean of the noise is exp(0.2 ** 2 / 2)


def test_offline_learns_unknown_speeds() -> None:
    devices = [SimulatedDevice(f"d{i}", 0, ms / 1e3, 8, known=False) for i, ms in enumerate((1, 10))]
    outcome = simulate(devices, [(0.0, 800)], offline=True)
    assert outcome.end_s / lower_bound_s(devices, 800) <= 1.12


def poisson(rate: float, count: int, seed: int = 0) -> list[tuple[float, int]]:
    gaps = np.random.default_rng(seed).exponential(1 / rate, count)
    return [(float(at), 1) for at in np.cumsum(gaps)]


def test_online_earliest_finish_beats_the_fast_device_alone_and_pulling() -> None:
    fast, slow = bed(10, 40, largest=1)
    arrivals = poisson(0.6 * (1 / 0.010 + 1 / 0.040), 3000)
    both = np.percentile(simulate([fast, slow], arrivals).latency_s, 99)
    alone = np.percentile(simulate([fast], arrivals).latency_s, 99)
    assert both < 0.8 * alone
    light = simulate([fast, slow], poisson(20, 500))
    # At light load a request waits for the fast device rather than take the idle one that is four times slower.
    assert np.percentile(light.latency_s, 95) < 0.040


def test_idle_lanes_share_a_burst_and_a_lone_request_never_waits() -> None:
    device = SimulatedDevice("simulated", 0.001, 0.001, 16, lanes=2)
    assert simulate([device], [(0.0, 1)]).latency_s == [pytest.approx(0.002)]
    burst = simulate([device], [(0.0, 8)])
    assert burst.end_s == pytest.approx(0.005)


def test_a_full_queue_is_batched_up_to_the_largest_batch() -> None:
    device = SimulatedDevice("simulated", 0.010, 0.001, 16)
    outcome = simulate([device], [(0.0, 1)] * 33)
    counters = outcome.dispatcher.devices[0]
    assert (counters.rows_done, counters.batches_done) == (33, 3)  # 1 on arrival, then 16 and 16


def test_a_bound_caps_the_batch() -> None:
    device = SimulatedDevice("simulated", 0.010, 0.010, 64)
    outcome = simulate([device], [(0.0, 1)] * 20, limits=Limits(bound_s=0.100))
    assert outcome.dispatcher.devices[0].batches_done == 1 + math.ceil(19 / 4)  # 10 ms + 4 rows is half the bound


def test_linger_closes_on_size_or_deadline() -> None:
    device = SimulatedDevice("simulated", 0.010, 0.0, 4)
    limits = Limits(linger_s=0.005)
    alone = simulate([device], [(0.0, 1)], limits=limits)
    assert alone.latency_s == [pytest.approx(0.015)]
    full = simulate([device], [(0.0, 1), (0.001, 1), (0.002, 1), (0.003, 1)], limits=limits)
    assert full.end_s == pytest.approx(0.013)


@pytest.mark.parametrize("jitter", [0.0, 0.2])
def test_admission_by_predicted_wait_keeps_the_bound_at_three_times_the_capacity(jitter: float) -> None:
    device = SimulatedDevice("simulated", 0.0, 0.0075, 1, lanes=2, jitter=jitter)
    capacity = 2 / 0.0075
    outcome = simulate([device], poisson(3 * capacity, 6000), admit_s=0.100, limits=Limits(bound_s=0.100))
    latency = np.array(outcome.latency_s)
    accepted = latency[~np.isnan(latency)]
    assert len(accepted) + len(outcome.refused) == 6000
    assert (accepted <= 0.100).sum() / outcome.end_s >= 0.75 * capacity
    assert np.percentile(accepted, 99) <= 1.05 * 0.100


def test_nothing_is_refused_at_half_the_capacity_or_when_idle() -> None:
    device = SimulatedDevice("simulated", 0.0, 0.010, 1, lanes=2)
    assert simulate([device], poisson(100, 2000), admit_s=0.100).refused == []
    assert simulate([device], [(0.0, 1)], admit_s=0.001).refused == []


def test_a_dead_device_loses_nothing() -> None:
    _, slow = bed(1, 4)
    dying = SimulatedDevice("dying", 0, 0.001, 8, dies_at_s=0.050)
    outcome = simulate([dying, slow], poisson(300, 200))
    assert outcome.answers == [1] * 200
    assert outcome.dispatcher.lanes[0].dead
    alone = simulate([SimulatedDevice("dying", 0, 0.001, 8, dies_at_s=0.050)], poisson(300, 200))
    assert all((a == 1) != (e is not None) for a, e in zip(alone.answers, alone.errors, strict=True))
    assert sum(e is not None for e in alone.errors) > 0


@pytest.mark.parametrize("offline", [False, True])
def test_a_stalled_device_loses_nothing(offline: bool) -> None:
    stalls = SimulatedDevice("stalls", 0, 0.001, 8, factor=lambda now: math.inf if now >= 0.02 else 1.0)
    steady = SimulatedDevice("steady", 0, 0.002, 8)
    outcome = simulate([stalls, steady], [(0.0, 100)] * 3, offline=offline, limits=Limits(stall_s=0.1))
    assert outcome.answers == [1, 1, 1]
    assert outcome.dispatcher.lanes[0].stalled
    assert outcome.dispatcher.resent >= 1


def test_when_every_device_stalls_the_work_fails_after_a_while() -> None:
    stalls = SimulatedDevice("stalls", 0, 0.001, 8, factor=lambda now: math.inf)
    outcome = simulate([stalls], [(0.0, 1), (0.0, 1)], limits=Limits(stall_s=0.1, give_up_s=1.0))
    assert all("stalled" in str(error) for error in outcome.errors)


def test_work_that_stalls_twice_is_answered_by_whoever_comes_back_or_fails_in_the_end() -> None:
    never = SimulatedDevice("never", 0, 0.001, 8, factor=lambda now: math.inf)
    late = SimulatedDevice("late", 0, 0.002, 8, factor=lambda now: 500.0)
    limits = Limits(stall_s=0.1, give_up_s=3.0)
    outcome = simulate([never, late], [(0.0, 1)], limits=limits)
    assert outcome.answers == [1]
    assert outcome.latency_s[0] == pytest.approx(1.1, abs=0.01)  # stalled for 0.1 s, then 1 s on the late device
    twice = simulate(
        [never, SimulatedDevice("never too", 0, 0.002, 8, factor=lambda now: math.inf)], [(0.0, 1)], limits=limits
    )
    assert twice.answers == [0]
    assert "stalled twice" in str(twice.errors[0])


def test_a_device_that_slows_down_gets_less() -> None:
    slows = SimulatedDevice("slows", 0, 0.001, 8, factor=lambda now: 8.0 if now > 0.2 else 1.0)
    steady = SimulatedDevice("steady", 0, 0.002, 8)
    outcome = simulate([slows, steady], [(0.0, 1000)], offline=True)
    # 300 rows in the first 0.2 s, then 500 + 125 rows per second.
    assert outcome.end_s <= (0.2 + 700 / 625) * 1.06


@settings(max_examples=80, deadline=None)
@given(
    arrivals=st.lists(st.tuples(st.floats(0, 0.05), st.integers(1, 40)), min_size=1, max_size=25),
    speeds=st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 10), st.integers(1, 16)), min_size=1, max_size=4),
    lanes=st.integers(1, 3),
    dies=st.sampled_from([math.inf, 0.0, 0.01, 0.05]),
    offline=st.booleans(),
    jitter=st.sampled_from([0.0, 0.5]),
    linger=st.sampled_from([0.0, 0.003]),
)
def test_every_work_is_answered_exactly_once_or_fails(
    arrivals: list[tuple[float, int]],
    speeds: list[tuple[float, float, int]],
    lanes: int,
    dies: float,
    offline: bool,
    jitter: float,
    linger: float,
) -> None:
    devices = [
        SimulatedDevice(f"d{i}", base / 1e3, row / 1e3, largest, lanes, jitter, dies_at_s=dies if i == 0 else math.inf)
        for i, (base, row, largest) in enumerate(speeds)
    ]
    limits = Limits(stall_s=10.0, linger_s=linger)
    outcome = simulate(devices, sorted(arrivals), offline=offline, limits=limits)
    answered = [a == 1 and e is None for a, e in zip(outcome.answers, outcome.errors, strict=True)]
    failed = [a == 0 and e is not None for a, e in zip(outcome.answers, outcome.errors, strict=True)]
    assert all(a != f for a, f in zip(answered, failed, strict=True))
    assert outcome.dispatcher.waiting_rows == 0
    if len(devices) > 1 or dies == math.inf:
        assert all(answered)


def test_service_model_finds_base_and_row_time_through_outliers() -> None:
    model = ServiceModel()
    rng = np.random.default_rng(0)
    for i in range(200):
        rows = int(rng.choice([1, 2, 4, 8]))
        seconds = 0.002 + 0.001 * rows
        model.observe(rows, seconds * (20 if i % 11 == 0 else 1))
    assert model.predict(1) == pytest.approx(0.003, rel=0.02)
    assert model.predict(8) == pytest.approx(0.010, rel=0.02)


def test_service_model_follows_a_lasting_change_within_four_batches() -> None:
    model = ServiceModel(0.0, 0.001)
    for _ in range(50):
        model.observe(4, 0.004)
    for _ in range(4):
        model.observe(4, 0.020)
    assert model.predict(4) == pytest.approx(0.020)


def test_running_quantile() -> None:
    tracker = RunningQuantile(0.95)
    for sample in np.random.default_rng(0).exponential(1.0, 5000):
        tracker.observe(float(sample))
    assert tracker.value == pytest.approx(3.0, rel=0.35)  # -ln(0.05)


@pytest.mark.parametrize(
    ("base_ms", "rows", "idle", "expected"),
    [
        (0.0, 8, 1, 4),  # the busy twin is left its part
        (0.0, 8, 2, 4),
        (0.0, 1, 1, 1),
        (0.0, 40, 1, 16),
        (1.0, 8, 1, 4),  # four rows at least, or most of a batch is its base
        (2.0, 8, 1, 8),
        (2.0, 8, 2, 4),  # both idle: never more than an even part
    ],
)
def test_twins_leave_each_other_work_where_small_batches_are_cheap(
    base_ms: float, rows: int, idle: int, expected: int
) -> None:
    model = ServiceModel(base_ms / 1e3, 0.001)
    assert share_of_twins(rows, 16, idle, 2, model) == expected
