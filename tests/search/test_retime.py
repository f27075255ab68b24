"""Who may be the fastest is timed again in company; what that finds is on record and replaces the first timing."""

from pathlib import Path

from hasten.measure.latency import Latency
from hasten.recipe import Recipe, make_target
from hasten.search.journal import Journal
from hasten.search.retime import doubtful, with_new_times
from hasten.search.trial import Trial


def _trial(number: int, low: float, ratio: float, high: float) -> Trial:
    latency = Latency(1, 1.0, 1.0, 1.0, ratio, low, high, 5, 50)
    return Trial(number, Recipe((), make_target("null")), latency=latency, score=1.0, drop=0.0, changed=0.0)


def test_only_those_whose_intervals_reach_the_best_are_doubtful() -> None:
    lucky, sure, near, slow = (
        _trial(1, 14, 24, 32),
        _trial(2, 15, 15.5, 16),
        _trial(3, 13, 15, 33),
        _trial(4, 9, 10, 11),
    )
    assert {t.number for t in doubtful([lucky, sure, near, slow])} == {1, 2, 3}
    assert doubtful([sure, slow]) == []
    assert doubtful([Trial(5, sure.recipe, failure="x")]) == []
    assert len(doubtful([_trial(n, 1, 2, 3) for n in range(9)])) == 5


def test_the_new_times_replace_the_first(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    trials = [_trial(0, 1, 1, 1), _trial(1, 14, 24, 32), _trial(2, 15, 15.5, 16)]
    assert with_new_times(trials, journal) == trials
    journal.append("retimed", {"latency": {"1": Latency(1, 1.0, 1.0, 1.0, 12.0, 11.5, 12.5, 11, 99).to_json()}})
    again = with_new_times(trials, Journal(tmp_path / "journal.jsonl"))
    assert [t.ratio for t in again] == [1.0, 12.0, 15.5]
    assert again[2] is trials[2]
