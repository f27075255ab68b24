"""Damage before training is judged by how far the answers moved, whatever the task judges by."""

from types import SimpleNamespace
from typing import Any

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
    score = mean_score(on_few(_session(bench), 32), graph)
    assert score(graph) == 0
    moved = capture(nn.Linear(4, 3), task.example)
    assert -2 <= score(moved) < -0.1


def test_class_scores_are_judged_by_their_probabilities() -> None:
    """Scores that leave no doubt may move far; where there is doubt, a small move counts."""
    sure = torch.tensor([[20.0, 0.0], [0.0, 20.0], [0.3, 0.0]])
    surer = torch.tensor([[40.0, 0.0], [0.0, 40.0], [0.3, 0.0]])
    flipped = torch.tensor([[20.0, 0.0], [0.0, 20.0], [0.0, 0.3]])
    spread = 200.0  # of the scores
    assert fidelity(surer, sure, spread).min() < -0.5
    assert torch.allclose(fidelity(surer, sure, 0.3, 1), torch.zeros(3, dtype=torch.float64), atol=1e-6)
    assert fidelity(flipped, sure, spread).min() > -0.01
    assert fidelity(flipped, sure, 0.3, 1)[2] < -0.05
    assert torch.equal(fidelity(flipped, sure, 0.3, 1), fidelity(flipped, sure, 0.3, -1))


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
    assert damage._answers(_session(bench))["classes"] == dimension


def test_damage_is_in_units_of_the_spread_over_all_samples_whatever_the_batch() -> None:
    """Answers that happen to be alike in one batch do not make its distances larger."""
    x = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]).repeat(16, 1)
    net, moved = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(1.0)
        moved.weight.fill_(0.5)
    task = Task(net, (x[:2],), list(x.split(2)))
    original = capture(net, task.example)
    bench = SimpleNamespace(inner=task, sizes=SimpleNamespace(evaluation=2))
    bench.graphs = SimpleNamespace(after=lambda steps, seconds: (original, steps))
    score = mean_score(on_few(_session(bench), 64), original)
    assert score(capture(moved, task.example)) == pytest.approx(-0.25)


def _session(bench: Any) -> Any:
    return SimpleNamespace(bench=bench, journal=SimpleNamespace(once=lambda event, key, make: make()))
