"""Near a deadline, what is too long is left out, and what still fits is tried."""

from collections.abc import Collection, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hasten.recipe import Recipe, make_target
from hasten.search import post_training
from hasten.search.finals import throughput_limit_s
from hasten.search.run import _compile_limit_s
from hasten.search.session import Attempt, OutOfTime, Session
from hasten.task import Budget

RECIPES = {name: Recipe((), make_target(name)) for name in ("onnxruntime", "openvino", "eager")}


def _session(takes_s: dict[str, float], left_s: list[float], known: Collection[str] = ()) -> Any:
    """One that has so many seconds left at every question, and knows what each target takes."""
    names = {recipe.to_yaml(): name for name, recipe in RECIPES.items()}
    left: Iterator[float] = iter(left_s)
    made: Any = SimpleNamespace(decided=[])
    made.is_known = lambda recipe: names[recipe.to_yaml()] in known
    made.expected_s = lambda attempt: takes_s[names[attempt.recipe.to_yaml()]]
    made.left_s = lambda: next(left)
    made.decide = lambda what, chosen, why, cost_s: made.decided.append((what, chosen, why))
    return made


def _tried(session: Any) -> list[Recipe]:
    attempts = map(Attempt, RECIPES.values())
    return [attempt.recipe for attempt in post_training._in_time(cast(Session, session), attempts)]


def test_a_shorter_one_after_one_that_is_too_long_is_tried() -> None:
    session = _session({"onnxruntime": 50.0, "openvino": 10.0, "eager": 20.0}, [30.0, 30.0, 20.0])
    assert _tried(session) == [RECIPES["openvino"], RECIPES["eager"]]
    assert session.decided == [("onnxruntime", False, "it would take 50 s, and 30 s are left")]


def test_nothing_is_tried_once_the_finals_must_begin() -> None:
    session = _session({"onnxruntime": 5.0, "openvino": 0.0, "eager": 0.0}, [10.0, 0.0])
    with pytest.raises(OutOfTime):
        _tried(session)


def test_what_is_on_record_takes_no_time() -> None:
    session = _session({}, [], known=RECIPES)
    assert _tried(session) == list(RECIPES.values())


def test_throughput_that_was_not_asked_for_has_a_limit() -> None:
    assert throughput_limit_s(Budget(minutes=10.0)) == pytest.approx(30.0)
    assert throughput_limit_s(Budget(minutes=10.0, objective="throughput")) == float("inf")
    assert throughput_limit_s(Budget()) == float("inf")


def test_where_compiling_is_all_there_is_to_judge_by_it_may_take_all_the_time() -> None:
    assert _compile_limit_s(Budget()) == 900
    assert _compile_limit_s(Budget(minutes=2)) == 60
    assert _compile_limit_s(Budget(minutes=20)) == 300
    assert _compile_limit_s(Budget(minutes=600)) == 900
    assert _compile_limit_s(Budget(minutes=4, limits={"luts": 1000})) == 240
    assert _compile_limit_s(Budget(limits={"luts": 1000})) == 900
