"""A later race may try fewer pixels together with fewer filters or blocks, where both were timed alone."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from hasten.recipe import make_target, make_technique
from hasten.search.candidates import Architecture, Candidates, Finish

FINISH = Finish((), make_target("null"))
BASE = 8.0


def _alone(name: str, option: dict[str, Any], merit: float, damage: float) -> Architecture:
    return Architecture(f"{name}{option}", (make_technique(name, option),), merit, damage, FINISH, measured=True)


MILD = _alone("lower_resolution", {"side": 0.86}, 9.0, 0.05)
FEWER = _alone("lower_resolution", {"side": 0.72}, 12.0, 0.2)
SHORTER = _alone("shrink", {"depth": 0.75}, 10.0, 0.1)
NARROWER = _alone("prune_filters", {"ratio": 0.5, "reconstruct": 128}, 16.0, 0.3)


def _candidates(monkeypatch: pytest.MonkeyPatch, changes: list[Architecture], left_s: float = 300.0) -> Any:
    journal = SimpleNamespace(find=lambda event, key: {"each_s": 10.0}, once=lambda event, key, make: make())
    found = object.__new__(Candidates)
    found.session = cast(Any, SimpleNamespace(journal=journal, left_s=lambda: left_s))
    found.finish, found.model, found._changes, found._base = FINISH, None, changes, BASE
    monkeypatch.setattr(found, "_measured", lambda name, steps: (name, steps))
    return found


@pytest.mark.parametrize(
    ("merit", "pair"),
    [(11.0, (MILD, SHORTER)), (14.0, (FEWER, SHORTER)), (16.0, (MILD, NARROWER)), (20.0, (FEWER, NARROWER))],
)
def test_the_pair_with_the_least_to_repair_that_gains_enough(
    monkeypatch: pytest.MonkeyPatch, merit: float, pair: tuple[Architecture, Architecture]
) -> None:
    """They gain 11.25, 15, 18 and 24 together; what refitting left counts twice."""
    found = _candidates(monkeypatch, [MILD, FEWER, SHORTER, NARROWER]).at(merit)
    assert found == (f"{pair[0].name}, {pair[1].name}", (*pair[0].steps, *pair[1].steps))


def test_none_where_no_pair_gains_enough_or_there_is_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [FEWER, SHORTER]
    assert _candidates(monkeypatch, both).at(15.1) is None
    assert _candidates(monkeypatch, [FEWER, MILD]).at(9.0) is None
    assert _candidates(monkeypatch, [SHORTER, NARROWER]).at(9.0) is None
    assert _candidates(monkeypatch, both, left_s=149.0).at(14.0) is None
    assert _candidates(monkeypatch, both, left_s=151.0).at(14.0) is not None
