"""How a recovery is prepared: what a step costs, and which statistics batch norm keeps."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

import hasten
from hasten.search import candidates, race
from hasten.search.damage import answers_damage


def _task(shift: float) -> hasten.Task:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.append(nn.Linear(8, 4))
    x = torch.randn(96, 3, 12, 12)
    with torch.no_grad():
        net.train()
        for _ in range(40):
            net(x)
    mean = cast(nn.BatchNorm2d, net[1]).running_mean
    assert mean is not None
    mean += shift
    return hasten.Task(
        net.eval(), (x[:8],), list(x[:64].split(16)), train=list(zip(x.split(16), [None] * 6, strict=True))
    )


@pytest.mark.parametrize(("shift", "frozen"), [(0.0, False), (2.0, True)])
def test_batch_norm_keeps_statistics_of_other_data(shift: float, frozen: bool) -> None:
    """They are kept only where the original had not those of this data."""
    task = _task(shift)
    graph = hasten.capture(task.model, task.example)
    bench: Any = SimpleNamespace(inner=task, sizes=SimpleNamespace(evaluation=16))
    bench.graphs = SimpleNamespace(after=lambda steps, seconds: (graph, steps))
    journal = SimpleNamespace(once=lambda event, key, make: make())
    session: Any = SimpleNamespace(bench=bench, once=journal.once, journal=journal)
    session.damage = answers_damage(session)
    changed = hasten.capture(task.model, task.example)
    with torch.no_grad():
        # Every feature map is scaled alike: new statistics take that back exactly, old ones do not.
        cast(Any, changed).get_submodule("0").weight.mul_(1.3)
    found = candidates._damage(session, changed)
    assert found["frozen"] == frozen
    assert 0 <= found["damage"] < 2


def test_a_random_loader_stays_random_when_only_its_first_batches_are_timed() -> None:
    class Shuffled:
        def __init__(self) -> None:
            self.generator = torch.Generator()

        def __len__(self) -> int:
            return 10

        def __iter__(self) -> Any:
            return iter([(torch.randn(2, 3, generator=self.generator), None) for _ in range(10)])

    task = hasten.Task(nn.Linear(3, 2).eval(), (torch.randn(2, 3),), [torch.randn(4, 3)], train=Shuffled())
    few = race._with_few_batches(task).train
    first, second = list(cast(Any, few)), list(cast(Any, few))
    assert len(first) == len(cast(Any, few)) == 3
    assert not torch.equal(first[0][0], second[0][0])
