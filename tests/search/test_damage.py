"""Damage before training is judged by how far the answers moved, whatever the task judges by."""

from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn

from hasten.graph.capture import capture
from hasten.search.damage import on_few
from hasten.task import Task
from hasten.training import mean_score


def test_a_task_with_a_metric_is_judged_by_the_distance_of_answers() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    net = nn.Linear(4, 3)
    task = Task(net, (x[:8],), [(x, torch.zeros(64))], metric=lambda output, target: 1.0)
    session = cast(Any, SimpleNamespace(bench=SimpleNamespace(inner=task, sizes=SimpleNamespace(evaluation=64))))
    graph = capture(net, task.example)
    score = mean_score(on_few(session, 32), graph)
    assert score(graph) == 0
    moved = capture(nn.Linear(4, 3), task.example)
    assert -2 <= score(moved) < -0.1
