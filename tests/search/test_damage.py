"""Damage before training is judged by how far the answers moved, whatever the task judges by."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from hasten.graph.capture import capture
from hasten.search import damage
from hasten.search.damage import fidelity, on_few
from hasten.task import Task
from hasten.training import mean_score


def test_a_task_with_a_metric_is_judged_by_the_distance_of_answers() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    net = nn.Linear(4, 3)
    task = Task(net, (x[:8],), [(x, torch.zeros(64))], metric=lambda output, target: 1.0)
    bench = SimpleNamespace(inner=task, sizes=SimpleNamespace(evaluation=64))
    graph = capture(net, task.example)
    bench.graphs = SimpleNamespace(after=lambda steps, seconds: (graph, steps))
    session = cast(Any, SimpleNamespace(bench=bench, once=lambda event, key, make: make()))
    score = mean_score(on_few(session, 32), graph)
    assert score(graph) == 0
    moved = capture(nn.Linear(4, 3), task.example)
    assert -2 <= score(moved) < -0.1


def test_class_scores_are_judged_by_their_probabilities() -> None:
    """Scores that leave no doubt may move far; where there is doubt, a small move counts."""
    sure = torch.tensor([[20.0, 0.0], [0.0, 20.0], [0.3, 0.0]])
    surer = torch.tensor([[40.0, 0.0], [0.0, 40.0], [0.3, 0.0]])
    flipped = torch.tensor([[20.0, 0.0], [0.0, 20.0], [0.0, 0.3]])
    assert fidelity(surer, sure).min() < -0.5
    assert torch.allclose(fidelity(surer, sure, 1), torch.zeros(3, dtype=torch.float64), atol=1e-6)
    assert fidelity(flipped, sure).min() > -0.01
    assert fidelity(flipped, sure, 1)[2] < -0.05
    assert torch.equal(fidelity(flipped, sure, 1), fidelity(flipped, sure, -1))


@pytest.mark.parametrize(
    ("target", "metric", "dimension"),
    [
        (torch.zeros(64, dtype=torch.long), None, 1),
        (None, None, 1),
        (torch.zeros(64, 3), None, None),
        (torch.zeros(64), lambda output, target: 1.0, None),
    ],
)
def test_class_scores_are_told_from_other_answers(target: Any, metric: Any, dimension: int | None) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    net = nn.Linear(4, 3)
    task = Task(net, (x[:8],), [(x, target)] if target is not None else [x], metric=metric)
    bench = SimpleNamespace(inner=task, sizes=SimpleNamespace(evaluation=64))
    bench.graphs = SimpleNamespace(after=lambda steps, seconds: (capture(net, task.example), steps))
    session = cast(Any, SimpleNamespace(bench=bench))
    assert damage._classes(session) == {"dimension": dimension}
