"""What a search says at its end when nothing ships: what came nearest, and why not."""

from types import SimpleNamespace
from typing import Any

from hasten.recipe import Recipe, make_target
from hasten.search.ending import explain
from hasten.search.finals import Finals
from hasten.search.trial import Trial
from hasten.task import Budget


def trial(number: int, target: str, **about: Any) -> Trial:
    return Trial(number, Recipe((), make_target(target)), **about)


def finals(failed: dict[str, str]) -> Finals:
    nothing: Any = SimpleNamespace()
    return Finals([], nothing, nothing, failed)


def test_a_deadline_before_the_first_candidate() -> None:
    found = explain([], finals({}), [trial(0, "eager")], Budget(max_drop=0.01, minutes=3))
    assert "No candidate was tried: the deadline ended while the original was being measured" in found


def test_finalists_that_all_failed_are_not_called_too_slow() -> None:
    trials = [trial(0, "eager"), trial(1, "null", failure="")]
    found = explain([], finals({"1": "the program ended"}), trials, Budget(max_drop=0.01))
    assert found.startswith("Nothing passed: no finalist ran to the end of its final.")
    assert "the program ended" in found
