"""Later candidates are measured against a program of their own kind, so that a busy minute does not rank them."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from hasten.measure.latency import Latency
from hasten.measure.worker import ProgramFailed
from hasten.recipe import Recipe, make_target
from hasten.search import bench as bench_module
from hasten.search.bench import Bench, Sizes
from hasten.search.pacemaker import Pacemaker
from hasten.search.retime import retime
from hasten.search.trial import Trial
from hasten.task import Budget

RECIPE = Recipe((), make_target("null"))


def latency(ratio: float) -> Latency:
    return Latency(1, 1.0, 1.0, 1.0, ratio, 0.9 * ratio, 1.1 * ratio, 5, 50)


class Runs:
    """A program that runs until it is closed."""

    failure = ""
    runs = True

    def close(self) -> None:
        self.runs = False


def measured(
    monkeypatch: pytest.MonkeyPatch, pacemaker: float | ProgramFailed, candidate: float
) -> tuple[Latency, bool]:
    """What a bench finds of a candidate, whose pacemaker of ratio 10 is now timed at another ratio."""
    ratios = {"original": 1.0, "pacemaker": pacemaker, "candidate": candidate, "another way": 1.0}

    def compare(timed: Mapping[str, Any], baseline: str, inputs: Any, **_: int) -> dict[str, Latency]:
        return {name: latency(float(ratios[name]) / float(ratios[baseline])) for name in timed}  # type: ignore[arg-type]

    def worker(number: int, recipe: Recipe) -> Any:
        assert number == 5
        if isinstance(pacemaker, ProgramFailed):
            raise pacemaker
        return Runs()

    monkeypatch.setattr(bench_module, "compare", compare)
    bench: Any = Bench.__new__(Bench)
    bench.baseline, bench.objective, bench.worker = None, "latency", worker
    bench.holdout, bench.sizes = SimpleNamespace(inputs=[]), Sizes(None, 1, 4, 64)
    bench.pacemaker = None
    bench.pace_by(Trial(5, RECIPE, latency=latency(10.0)))
    alone, never = bench._beside_the_original({"candidate": None}, 5)
    found, disturbed = bench._beside_the_original({"candidate": None, "another way": None}, 5)
    assert not never
    assert alone["candidate"] == found["candidate"]
    return found["candidate"], disturbed


def test_a_disturbed_minute_is_found_and_taken_out_of_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    found, disturbed = measured(monkeypatch, 8.0, 12.0)
    assert (found.ratio, found.ratio_low, found.ratio_high) == pytest.approx((15, 13.5, 16.5))
    assert disturbed


def test_a_disturbed_original_makes_nobody_look_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    found, disturbed = measured(monkeypatch, 20.0, 20.0)
    assert found.ratio == pytest.approx(10)
    assert not disturbed


def test_without_its_pacemaker_a_candidate_is_timed_beside_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    found, disturbed = measured(monkeypatch, ProgramFailed("gone"), 12.0)
    assert (found.ratio, disturbed) == (12.0, False)


def test_the_best_becomes_the_pacemaker() -> None:
    original, good = (
        Trial(n, RECIPE, latency=latency(r), score=1.0, drop=0.0, changed=0.0) for n, r in ((0, 1.0), (1, 7.0))
    )
    paced: list[Trial] = []
    bench, budget = SimpleNamespace(pace_by=paced.append), Budget(max_drop=0.01)
    session: Any = SimpleNamespace(bench=bench, budget=budget, trials=[original, good], best=good)
    retime(session)
    assert [(t.number, t.recipe, t.ratio) for t in paced] == [(1, RECIPE, 7.0)]


class Ends(Runs):
    """A program whose process ends in the middle of a timing, once."""

    def end(self) -> None:
        self.failure = "ended"
        raise ProgramFailed(self.failure)


def bench_with(monkeypatch: pytest.MonkeyPatch, baseline: Any, worker: Any) -> Any:
    def compare(timed: Mapping[str, Any], baseline: str, inputs: Any, **_: int) -> dict[str, Latency]:
        for program in timed.values():
            if isinstance(program, Ends):
                program.end()
        return {name: latency(1.0 if name == baseline else 5.0) for name in timed}

    monkeypatch.setattr(bench_module, "compare", compare)
    bench: Any = Bench.__new__(Bench)
    bench.holdout, bench.sizes = SimpleNamespace(inputs=[]), Sizes(None, 1, 4, 64)
    bench.baseline, bench.pacemaker, bench.worker = baseline, None, lambda number, recipe: worker
    bench.pace_by(Trial(5, RECIPE, latency=latency(10.0)))
    return bench


def test_a_pacemaker_that_ends_in_a_timing_is_not_the_candidates_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_with(monkeypatch, SimpleNamespace(failure=""), Ends())
    found, _ = bench._beside_the_original({"candidate": SimpleNamespace(failure="")}, 5)
    assert found["candidate"].ratio == 5.0


def test_an_original_that_ends_in_a_timing_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_with(monkeypatch, Ends(), None)
    alive = SimpleNamespace(failure="")
    monkeypatch.setattr(bench, "revive", lambda: setattr(bench, "baseline", alive))
    found = bench.compare({"original": bench.baseline, "candidate": alive}, "original", 5)
    assert found["candidate"].ratio == 5.0
    with pytest.raises(ProgramFailed):
        bench.compare({"original": bench.baseline, "candidate": Ends()}, "original", 5)


def test_it_runs_from_one_timing_to_the_next() -> None:
    started: list[Any] = []

    def start(trial: Trial) -> Any:
        started.append(Runs())
        return started[-1]

    pacemaker = Pacemaker(Trial(5, RECIPE, latency=latency(10.0)), start)
    assert not started
    programs = [pacemaker.program(), pacemaker.program()]
    started[0].failure = "gone"
    programs.append(pacemaker.program())
    started[1].runs = False
    programs.append(pacemaker.program())
    pacemaker.close()
    programs.append(pacemaker.program())
    assert programs == [started[n] for n in (0, 0, 1, 2, 3)]
    assert [x.runs for x in started] == [False, False, False, True]


def test_another_pacemaker_ends_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Runs()
    bench = bench_with(monkeypatch, SimpleNamespace(failure=""), program)
    bench._beside_the_original({"candidate": SimpleNamespace(failure="")}, 5)
    assert program.runs
    bench.pace_by(None)
    assert not program.runs
