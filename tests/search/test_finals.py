"""The certifying test is taken one after the other, from safe to bold, and ends with the first that fails it."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hasten.recipe import Recipe, make_target
from hasten.search.finals import _certify_all
from hasten.search.trial import Trial
from hasten.task import Budget

ROWS = np.arange(1000)


def _trial(number: int, target: str) -> Trial:
    return Trial(number, Recipe((), make_target(target)), score=1.0, drop=0.0)


def _certified(losses: dict[int, int], targets: dict[int, str], budget: Budget) -> tuple[dict[int, Any], list[int]]:
    """The certificates of trials that lose so many answers, and which were scored."""
    scored = []

    def score(number: int, worker: Any, rows: np.ndarray) -> np.ndarray:
        scored.append(number)
        found = np.ones(len(rows))
        found[: losses[number]] = 0
        return found

    holdout = SimpleNamespace(certify=ROWS, seed=0)
    bench: Any = SimpleNamespace(
        holdout=holdout, baseline_certify=np.ones(1000), score=score, unlabelled=False, content_sha256="",
    )  # fmt: skip
    finalists = [_trial(number, targets.get(number, "null")) for number in losses]
    workers: Any = dict.fromkeys(map(str, losses))
    return _certify_all(bench, finalists, workers, budget), scored


def test_what_is_bolder_is_not_tested_once_one_failed() -> None:
    found, scored = _certified({4: 0, 2: 3, 9: 30, 1: 0}, {}, Budget(max_drop=0.01))
    assert scored == [4, 2, 9]
    assert [found[number].passed for number in scored] == [True, True, False]
    assert [found[number].upper_bound for number in (4, 2)] == [0.01, 0.01]
    assert found[9].upper_bound > 0.03
    assert [c.confidence for c in found.values()] == pytest.approx([0.95] * 3)


def test_where_all_pass_the_largest_bound_holds_for_all() -> None:
    found, _ = _certified({4: 0, 2: 3}, {}, Budget(max_drop=0.01))
    alone, _ = _certified({2: 3}, {}, Budget(max_drop=0.01))
    assert found[4].upper_bound == found[2].upper_bound == alone[2].upper_bound < 0.01


def test_judged_targets_share_the_error_and_do_not_wait_for_each_other() -> None:
    budget = Budget(max_drop=0.01, limits={"luts": 1.0})
    found, scored = _certified({1: 30, 2: 0, 3: 0}, {1: "null", 2: "null", 3: "onnxruntime"}, budget)
    assert scored == [1, 3]
    assert (found[1].passed, found[3].passed) == (False, True)
    assert found[3].confidence == pytest.approx(1 - 0.05 / 2)
