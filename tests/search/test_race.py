"""Who enters the next race: also what the last one left near the limit, with more training."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from hasten.measure.latency import Latency
from hasten.recipe import Recipe, make_target, make_technique
from hasten.search import race
from hasten.search.candidates import FEWEST_PROBES, Architecture, Finish
from hasten.search.finalists import Counts
from hasten.search.heat import Heat
from hasten.search.trial import Trial
from hasten.task import Budget

TARGET = make_target("null")
CUT = (make_technique("prune_filters", {"ratio": 0.5}),)
TRAINED = (*CUT, make_technique("distill", {"max_steps": 20}))


def _trial(number: int, merit: float, drop: float, steps: Any = ()) -> Trial:
    latency = Latency(1, 1.0, 1.0, 1.0, merit, merit, merit, 1, 1)
    return Trial(number, Recipe(steps, TARGET), latency=latency, score=1 - drop, drop=drop, noise=0.01)


@pytest.mark.parametrize(("drop", "again"), [(0.012, True), (0.3, False)])
def test_what_is_left_near_the_limit_trains_on(monkeypatch: pytest.MonkeyPatch, drop: float, again: bool) -> None:
    finish, raced, drops = Finish((), TARGET), list[Any](), [drop, 0.5]
    only = Architecture("cut all by 50%", CUT, 3.0, 0.3, finish)

    def ran(session: Any, entrants: list[Architecture], heat: Heat) -> list[tuple[Architecture, Trial]]:
        raced.append(entrants[0].steps)
        return [(entrants[0], _trial(2, 3.0, drops.pop(0), TRAINED))]

    stubs: dict[str, Any] = {
        "finishes": lambda session: [finish],
        "rescue_rounding": lambda session: None,
        "better_finish": lambda session, ends: finish,
        "probe_budget": lambda session, finish: FEWEST_PROBES,
        "Candidates": lambda *about: SimpleNamespace(first=lambda base, least: [only], at=lambda merit: None),
        "step_cost": lambda session, a: race.StepCost(0.1, 0.0, 10),
        "_plan": lambda *about: Heat(1, 1, 20, 2.0),
        "race": ran,
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(race, name, stub)
    session = SimpleNamespace(
        budget=Budget(max_drop=0.01, minutes=10),
        trials=[_trial(0, 1.0, 0.0), _trial(1, 1.5, 0.0)],
        counts=Counts(400, 1200, 0.0),
        journal=SimpleNamespace(elapsed_s=0.0),
        listener=SimpleNamespace(begin=lambda count: None),
        decide=lambda *about: None,
        once=lambda event, key, make: make() if event == "plan" else {"damage": 0.1, "frozen": False},
    )
    race.train_and_race(cast(Any, session))
    assert raced == ([CUT, TRAINED] if again else [CUT])
