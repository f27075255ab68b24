"""The TPU compiler ahead of time: what it prints; where its environment is installed, integer products and memory."""

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
from hasten.stacks._statements import memory_needed, products
from hasten.task import Task

# Of the form of XLA's optimized programs, with other names.
PROGRAM = """
  %a = bf16[8,128]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
  ROOT %b = s32[4,6,6,8]{3,2,1,0:T(8,128)} convolution(%c, %d), window={size=3x3}
  %e = f32[8,4]{1,0} dot(%f, %g), lhs_contracting_dims={1}
  %h = s32[8,4]{1,0} dot(%i, %j)
  %k = f32[8,4]{1,0} add(%convolution.1, %dot.2)
"""


def test_products_are_counted_by_the_type_that_they_give() -> None:
    assert products(PROGRAM.splitlines()) == {"bf16": 1, "s32": 2, "f32": 1}


def test_the_memory_that_was_needed_is_quoted() -> None:
    told = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 64.2G of 15.75G hbm.\n\nTotal usage"
    assert memory_needed(told) == "Ran out of memory in memory space hbm. Used 64.2G of 15.75G hbm."
    assert memory_needed("x" * 500) == "x" * 300


def task_of(model: nn.Module, x: torch.Tensor) -> Task:
    return Task(model=model.eval(), example=(x,), holdout=[(x, torch.zeros(len(x), dtype=torch.int64))])


@pytest.mark.stack("tpu")
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


@pytest.mark.stack("tpu")
def test_a_program_that_does_not_fit_is_refused_with_the_memory_it_needs(tmp_path: Path) -> None:
    target = make_target("tpu", {"batch": 2**24})
    task = task_of(nn.Linear(1024, 4), torch.randn(2, 1024))
    with pytest.raises(Unsupported, match=r"memory of v5e, but.*[GM]"):
        target.compile(capture(task.model, task.example), task, tmp_path)


@pytest.mark.stack("tpu")
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
