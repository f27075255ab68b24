"""A recovery's learning rate: the usual one, unless a few steps with it undo the network."""

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

import hasten
from hasten.errors import Unsupported
from hasten.recipe import make_target, make_technique
from hasten.search import rate
from hasten.search.candidates import Architecture, Finish
from hasten.search.damage import answers_damage

ASKED = {"epochs": 20}


def _session(scale: float, left_s: float = 1e6) -> Any:
    """A network for inputs of some scale; the larger, the steeper its loss."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    x = torch.randn(96, 16)
    with torch.no_grad():
        cast(nn.Linear, net[0]).weight.div_(scale)
    task = hasten.Task(net.eval(), (x[:8] * scale,), list((x[:64] * scale).split(16)), train=list((x * scale).split(8)))
    graph, journal = hasten.capture(task.model, task.example), dict[str, Any]()
    damaged = hasten.capture(task.model, task.example)
    with torch.no_grad():
        cast(Any, damaged).get_submodule("2").weight.mul_(0.8)

    def once(event: str, key: str, make: Any) -> Any:
        return journal.setdefault(key, make()) if key not in journal else journal[key]

    bench = SimpleNamespace(inner=task, sizes=SimpleNamespace(evaluation=16))
    bench.graphs = SimpleNamespace(after=lambda steps, seconds: (damaged if steps else graph, steps))
    session: Any = SimpleNamespace(
        bench=bench, once=once, journal=SimpleNamespace(once=once), left_s=lambda: left_s, said=(said := []),
        listener=SimpleNamespace(trying=print), decide=lambda what, chosen, why: said.append((what, chosen)),
    )  # fmt: skip
    session.damage = answers_damage(session)
    return session


def _cut(session: Any) -> Architecture:
    steps = (make_technique("prune_neurons", {"ratio": 0.5}),)
    damage = session.damage(session.bench.graphs.after(steps, {})[0])
    return Architecture("half", steps, 2.0, damage, Finish((), make_target("null")), measured=True)


def test_a_rate_that_recovers_stays_and_is_tried_once() -> None:
    session = _session(1.0)
    assert rate.fit_rate(session, _cut(session), ASKED, 60, 0.01) == {"lr": 0.01}
    assert session.said == [("learning rate 0.01 for half", True)]


def test_a_rate_that_undoes_the_network_is_lowered() -> None:
    session = _session(60.0)
    found = rate.fit_rate(session, _cut(session), ASKED, 60, 0.01)["lr"]
    assert found < 0.005
    assert session.said[0] == ("learning rate 0.01 for half", False)
    session.said.clear()
    assert rate.fit_rate(session, _cut(session), ASKED, 60, 0.01) == {"lr": found}  # a resume takes it from the journal


def test_a_rate_with_which_the_loss_is_no_longer_finite_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    def damage(session: Any, graph: Any, options: dict[str, Any]) -> float | None:
        return None if options["lr"] > 0.005 else 0.01

    session = _session(1.0)
    monkeypatch.setattr(rate, "_damage_after", damage)
    assert rate.fit_rate(session, _cut(session), ASKED, 60, 0.01)["lr"] == pytest.approx(0.003)


def test_what_cannot_be_judged_counts_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    session = _session(1.0)
    graph, _ = session.bench.graphs.after((), {})
    options = {"max_steps": 20, "stop_after": 2, "lr": 0.01}
    assert cast(float, rate._damage_after(session, graph, options)) < 0.1
    session.damage = lambda graph: math.nan
    assert rate._damage_after(session, graph, options) is None

    def diverges(*about: Any) -> Any:
        raise Unsupported("Training must keep a finite loss")

    monkeypatch.setattr(rate, "make_technique", lambda name, options: SimpleNamespace(apply=diverges))
    assert rate._damage_after(session, graph, options) is None


@pytest.mark.parametrize(("steps", "left_s"), [(49, 1e6), (60, 0.1)])
def test_short_recoveries_and_little_time_try_nothing(steps: int, left_s: float) -> None:
    session = _session(60.0, left_s)
    assert rate.fit_rate(session, _cut(session), ASKED, steps, 0.01) == {}
    assert not session.said


def test_training_on_keeps_the_rate() -> None:
    session = _session(1.0)
    steps = (make_technique("prune_neurons", {"ratio": 0.5}), make_technique("distill", {"lr": 0.0007}))
    trained = Architecture("half", steps, 2.0, 0.1, Finish((), make_target("null")))
    assert rate.fit_rate(session, trained, ASKED, 60, 0.01) == {"lr": 0.0007}
