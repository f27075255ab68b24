"""TVM, when its environment is installed: what is tuned within the limit ships, and computes the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hasten.errors import InvalidInput, Unsupported
from hasten.graph.capture import capture
from hasten.recipe import make_target, make_technique
from hasten.task import Task


@pytest.fixture
def task() -> Task:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    x = torch.randn(3, 3, 8, 8)
    return Task(model=nn.Sequential(*layers).eval(), example=(x,), holdout=[(x, torch.zeros(3, dtype=torch.int64))])


@pytest.mark.parametrize("minutes", [0.0, pytest.param(0.2, marks=pytest.mark.slow)])
def test_compiled_code_runs_in_pieces_of_another_size(minutes: float, task: Task, tmp_path: Path) -> None:
    target = make_target("tvm", {"minutes": minutes, "batch": 2, "threads": 1})
    if missing := target.missing():
        pytest.skip(f"tvm needs: {missing}")
    graph = capture(task.model, task.example)
    target.compile(graph, task, tmp_path)
    with torch.no_grad():
        expected = graph(*task.example).numpy()
    np.testing.assert_allclose(target.load(tmp_path)(task.example[0].numpy())[0], expected, atol=1e-5)
    report = json.loads((tmp_path / "report.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {"model.so", "report.json"}
    assert report["kernels"] >= 2
    if minutes:
        assert 1 <= report["tuned"] <= report["kernels"]
        assert report["failed"] < report["candidates"]
    else:
        assert (report["tuned"], report["candidates"]) == (0, 0)


def test_quantized_graphs_are_refused(task: Task, tmp_path: Path) -> None:
    graph = make_technique("quantize", {}).apply(capture(task.model, task.example), task)
    with pytest.raises(Unsupported, match="no integer form"):
        make_target("tvm").compile(graph, task, tmp_path)


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(InvalidInput, match="minutes"):
        make_target("tvm", {"minutes": -1.0})
