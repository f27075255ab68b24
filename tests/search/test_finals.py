"""Finalists take the certifying test in the order they were chosen in; judged targets apart."""

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


def _certified(
    losses: dict[int, int], targets: dict[int, str], budget: Budget, fails: tuple[int, ...] = ()
) -> tuple[dict[int, Any], list[int]]:
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
    workers: Any = {str(number): "runs" for number in losses if number not in fails}
    return _certify_all(bench, finalists, workers, budget), scored


def test_all_are_tested_in_the_order_given() -> None:
    found, scored = _certified({4: 0, 2: 3, 9: 30, 1: 0}, {}, Budget(max_drop=0.01))
    assert scored == [4, 2, 9, 1]
    assert [found[number].passed for number in scored] == [True, True, False, True]
    assert [found[number].error for number in scored] == pytest.approx([0.0125, 0.025, 0.0375, 0.0125])


def test_one_that_was_left_out_does_not_leave_its_share() -> None:
    found, _ = _certified({4: 0, 9: 0, 2: 3}, {}, Budget(max_drop=0.01), fails=(9,))
    assert [found[number].error for number in (4, 2)] == pytest.approx([0.05 / 3, 2 * 0.05 / 3])
    assert found[4].finalists == 3


def test_judged_targets_share_the_error_and_are_tested_apart() -> None:
    budget = Budget(max_drop=0.01, limits={"luts": 1.0})
    found, scored = _certified({1: 30, 2: 0, 3: 0}, {1: "null", 2: "null", 3: "onnxruntime"}, budget)
    assert scored == [1, 2, 3]
    assert [found[number].passed for number in scored] == [False, True, True]
    assert [found[number].error for number in scored] == pytest.approx([0.0125, 0.0125, 0.025])


def test_a_judged_target_whose_program_fails_changes_nothing_for_another() -> None:
    budget = Budget(max_drop=0.01, limits={"luts": 1.0})
    found, scored = _certified({1: 0, 2: 0}, {1: "null", 2: "onnxruntime"}, budget, fails=(1,))
    assert scored == [2]
    assert found[2].error == pytest.approx(0.025)
