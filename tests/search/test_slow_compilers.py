"""Under a deadline, slow compilers are asked only for what may win."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hasten.measure.latency import Latency
from hasten.recipe import Recipe, make_target, make_technique
from hasten.search import post_training
from hasten.search.journal import Journal
from hasten.search.session import Session
from hasten.search.trial import Trial
from hasten.task import Budget

QUANTIZED = (make_technique("quantize", {"placement": "fuse_clamps"}),)
FLOAT, INTEGER = Recipe((), make_target("inductor")), Recipe(QUANTIZED, make_target("inductor"))


def _trial(number: int, merit: float, steps: Any = ()) -> Trial:
    latency = Latency(1, 1.0, 1.0, 1.0, merit, merit, merit, 1, 1)
    return Trial(number, Recipe(steps, make_target("onnxruntime")), latency=latency, score=1.0, drop=0.0, changed=0.0)


class _Journal(Journal):
    spent_s = 10.0

    @property
    def elapsed_s(self) -> float:
        return self.spent_s


def _session(folder: Path, integers: float, minutes: float | None = 10.0, spent_s: float = 10.0) -> Session:
    trials = [_trial(0, 1.0), _trial(1, 4.0), _trial(2, integers, QUANTIZED)]
    journal = _Journal(folder / "journal.jsonl")
    journal.spent_s = spent_s
    made: Any = SimpleNamespace(budget=Budget(minutes=minutes), journal=journal, trials=trials, decided=[])
    made.best = max(trials, key=lambda t: t.merit)
    made.decide = lambda what, chosen, why: made.decided.append((what, chosen))
    return cast(Session, made)


@pytest.mark.parametrize(("integers", "wins"), [(7.9, True), (8.1, False)])
def test_a_float_program_that_is_out_of_reach_is_not_compiled(tmp_path: Path, integers: float, wins: bool) -> None:
    session = _session(tmp_path, integers)
    assert post_training._may_win(session, FLOAT) == wins
    assert post_training._may_win(session, INTEGER)
    assert len(cast(Any, session).decided) == (not wins)


def test_everything_is_compiled_without_a_deadline(tmp_path: Path) -> None:
    assert post_training._may_win(_session(tmp_path, 100.0, minutes=None, spent_s=1e5), FLOAT)


def test_a_resumed_run_decides_as_the_first_did(tmp_path: Path) -> None:
    assert post_training._may_win(_session(tmp_path, 5.0, spent_s=80.0), INTEGER)
    assert post_training._may_win(_session(tmp_path, 5.0, spent_s=500.0), INTEGER)
    other = tmp_path / "other"
    other.mkdir()
    assert not post_training._may_win(_session(other, 5.0, spent_s=100.0), INTEGER)
