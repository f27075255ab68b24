import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.engine.engine import Engine
from hasten.engine.profile import profile, run_together
from hasten.engine.runner import Runner, divide_cores
from hasten.engine.tune import Shape, ranked, shapes, tune
from hasten.errors import InvalidInput


def same(x: np.ndarray) -> tuple[np.ndarray, ...]:
    return (x,)


def takes(base_s: float, row_s: float) -> Callable[..., list[float]]:
    """Stands in for `run_together`: what devices with these service times would take; nothing is measured."""

    def run_together(runners: Sequence[Runner], sizes: Sequence[int], seconds: float, *calls: float) -> list[float]:
        return [base_s + row_s * size for size in sizes]

    return run_together


def test_shapes_divide_the_cores() -> None:
    assert shapes(4) == [(4, 1), (2, 2), (1, 4)]
    assert shapes(1) == [(1, 1)]


def test_ranking() -> None:
    fast, slow, quick, near = (
        Shape(1, 2, 8, 60, 1000),
        Shape(2, 1, 4, 30, 900),
        Shape(1, 2, 1, 5, 300),
        Shape(2, 1, 8, 40, 990),
    )
    found = [fast, slow, quick, near]
    assert ranked(found, None) == [near, fast, slow, quick]  # 1% slower but a third shorter
    assert ranked(found, 80) == [near, slow, quick, fast]
    assert ranked(found, 4) == [quick, slow, near, fast]


def test_tuning_finds_the_batch_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    def opener(path: Any, replicas: int, threads: int, pinned: bool) -> Runner:
        name = f"{replicas} x {threads} {pinned}"
        example = (np.zeros((1, 2), np.float32),)
        return Runner(name, (same,) * replicas, example=example, close=lambda: closed.append(name))

    monkeypatch.setattr("hasten.engine.tune.run_together", takes(0.004, 0.001))
    found = tune("x", largest=8, turns=2, opener=opener)
    assert found[0].batch == 8
    assert found[0].latency_ms == pytest.approx(12)
    assert found[0].rows_per_s == pytest.approx(found[0].replicas * 8 / 0.012)
    assert len(closed) == len({(x.replicas, x.threads, x.pinned) for x in found})
    bounded = tune("x", bound_ms=17, largest=8, turns=1, opener=opener)
    assert bounded[0].batch == 4  # 8 ms is within half of 17 ms
    with pytest.raises(InvalidInput, match="`turns` must be at least 1"):
        tune("x", turns=0)


def test_an_engine_of_the_tuned_shape_answers(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = Shape(1, 1, 3, 1.0, 10.0)
    monkeypatch.setattr("hasten.engine.tune.tune", lambda path, bound_ms: [best])
    with Engine.tune(artifact, profile_s=0) as engine:
        assert engine.statistics()["devices"][0]["largest_batch"] == 3
        assert engine(np.zeros((7, 4), np.float32))[0].shape == (7, 3)


@pytest.mark.parametrize(
    ("base_s", "row_s", "knee"),
    [(0.010, 0.0, 64), (0.0, 0.010, 1), (0.0021, 0.010, 8)],  # at 8 rows the base is 2.6% of the time, at 4 rows 5%
)
def test_the_knee_is_where_batching_stops_paying(
    base_s: float, row_s: float, knee: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.engine.profile.run_together", takes(base_s, row_s))
    runner = Runner("device", (same,), example=(np.zeros((1, 2), np.float32),))
    (found,) = profile([runner], seconds=60)
    assert found.knee == knee
    if knee > 1:
        assert found.base_s == pytest.approx(base_s)
        assert found.row_s == pytest.approx(row_s)


def test_running_together_times_every_device() -> None:
    runners = [Runner(str(i), (same, same), example=(np.zeros((1, 2), np.float32),)) for i in range(2)]
    assert all(0 < seconds < 10 for seconds in run_together(runners, [1, 3], 0.01))

    def broken(x: np.ndarray) -> tuple[np.ndarray, ...]:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run_together([Runner("broken", (broken,), example=(np.zeros((1, 2), np.float32),))], [1], 0.01)


def test_pinning_is_chosen_when_it_measures_better(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.engine.tune.usable_cores", lambda: 2)

    def run_together(runners: Sequence[Runner], sizes: Sequence[int], seconds: float, *calls: float) -> list[float]:
        return [0.01 * size * (0.5 if runner.cores else 1) for runner, size in zip(runners, sizes, strict=True)]

    monkeypatch.setattr("hasten.engine.tune.run_together", run_together)
    found = tune(artifact, largest=1, turns=1)
    assert found[0].pinned
    assert {(x.replicas, x.threads, x.pinned) for x in found} == {(2, 1, False), (2, 1, True), (1, 2, False)}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot pin threads")
def test_pinned_replicas_keep_to_their_cores(artifact: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    assert divide_cores(2, 1) == (frozenset(cores[:1]), frozenset(cores[1 % len(cores) :][:1]))
    seen: set[frozenset[int]] = set()

    def where(x: np.ndarray) -> tuple[np.ndarray, ...]:
        seen.add(frozenset(os.sched_getaffinity(0)))
        return (x,)

    pins = divide_cores(2, 1)
    with Engine(Runner("pinned", (where, where), cores=pins), largest=1, profile_s=0) as engine:
        list(engine.map(np.zeros((50, 1, 2), np.float32)))
    assert seen
    assert seen <= set(pins)
    with Engine(artifact, replicas=2, threads=1, pinned=True, processes=True, profile_s=0) as engine:
        children = [os.sched_getaffinity(program.pid) for program in engine.runners[0].lanes]  # type: ignore[attr-defined]
        assert children == [set(pin) for pin in pins]
    assert sorted(os.sched_getaffinity(0)) == cores
