"""The TPU compiler ahead of time, when its environment is installed: integer products, several chips, memory."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hasten import judged
from hasten.errors import Unsupported
from hasten.graph.capture import capture
from hasten.recipe import make_target, make_technique
from hasten.task import Task

pytestmark = pytest.mark.stack("tpu")


def task_of(model: nn.Module, x: torch.Tensor) -> Task:
    return Task(model=model.eval(), example=(x,), holdout=[(x, torch.zeros(len(x), dtype=torch.int64))])


def test_int8_layers_multiply_integers_and_batches_divide_over_chips(tmp_path: Path) -> None:
    target = make_target("tpu", {"chips": 2})
    torch.manual_seed(0)
    task = task_of(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)), torch.randn(4, 3, 8, 8)
    )
    graph = make_technique("quantize", {"placement": "fuse_activations"}).apply(capture(task.model, task.example), task)
    target.compile(graph, task, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["products"] == {"s32": 2}
    assert (report["chips"], report["batch"]) == (2, 4)
    assert judged.read(tmp_path) == {"hbm_bytes": report["hbm_bytes"]}
    assert report["hbm_bytes"] > 0
    assert (tmp_path / "executable.bin").stat().st_size > 1000
    with torch.no_grad():
        expected = graph(*task.example).numpy()
    found = target.load(tmp_path)(task.example[0].numpy())[0]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_a_program_that_does_not_fit_is_refused_with_the_memory_it_needs(tmp_path: Path) -> None:
    target = make_target("tpu", {"batch": 2**24})
    task = task_of(nn.Linear(1024, 4), torch.randn(2, 1024))
    with pytest.raises(Unsupported, match=r"memory of v5e, but.*[GM]"):
        target.compile(capture(task.model, task.example), task, tmp_path)


def test_a_batch_that_does_not_divide_over_the_chips_is_refused(tmp_path: Path) -> None:
    target = make_target("tpu", {"chips": 4, "batch": 6})
    task = task_of(nn.Linear(3, 2), torch.randn(2, 3))
    with pytest.raises(Unsupported, match="divide over the chips"):
        target.compile(capture(task.model, task.example), task, tmp_path)


@pytest.mark.parametrize("chip", ["v4", "v5p", "v6e"])
def test_every_generation_multiplies_integers(chip: str, tmp_path: Path) -> None:
    target = make_target("tpu", {"chip": chip})
    torch.manual_seed(0)
    task = task_of(nn.Linear(256, 128), torch.randn(8, 256))
    graph = make_technique("quantize", {"placement": "fuse_activations"}).apply(capture(task.model, task.example), task)
    target.compile(graph, task, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["products"] == {"s32": 1}
    assert report["chip"] == chip
