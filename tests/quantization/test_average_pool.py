"""Average pooling that counts its padding, between integer layers: OpenVINO answers as the graph does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hasten.errors import Unsupported
from hasten.graph.capture import capture
from hasten.quantization.average_pool import averages_as_convolutions
from hasten.recipe import make_target
from hasten.task import Task
from hasten.techniques.quantize import Quantize


def task_of(*layers: nn.Module, size: tuple[int, ...] = (8, 8)) -> Task:
    torch.manual_seed(0)
    x = torch.randn(4, 3, *size)
    return Task(nn.Sequential(*layers).eval(), (x,), holdout=[(x,)], calibration=[(x,)])


def between(pool: nn.Module) -> Task:
    torch.manual_seed(0)
    return task_of(nn.Conv2d(3, 8, 3, padding=1), pool, nn.Conv2d(8, 4, 1))


@pytest.mark.parametrize("placement", ["fuse_activations", "fuse_clamps"])
@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(3, 1, 1),
        nn.AvgPool2d((2, 3), 2, (1, 0)),
        nn.AvgPool2d(3, padding=1, divisor_override=5),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.AvgPool2d(2),
    ],
    ids=["padded", "uneven", "divisor", "not counted", "not padded"],
)
def test_openvino_agrees_with_the_graph(pool: nn.Module, placement: str, tmp_path: Path) -> None:
    task = between(pool)
    graph = Quantize(placement=placement).apply(capture(task.model, task.example), task)
    target = make_target("openvino", {"threads": 1})
    target.compile(graph, task, tmp_path)
    (found,) = target.load(tmp_path)(task.example[0].numpy())
    with torch.no_grad():
        expected = graph(*task.example).numpy()
    assert np.abs(found - expected).max() <= 0.01 * np.abs(expected).max()


def test_a_sequence_is_pooled_alike(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = task_of(nn.Conv1d(3, 8, 3, padding=1), nn.AvgPool1d(3, 1, 1), nn.Conv1d(8, 4, 1), size=(16,))
    graph = Quantize(placement="fuse_clamps").apply(capture(task.model, task.example), task)
    target = make_target("openvino", {"threads": 1})
    target.compile(graph, task, tmp_path)
    (found,) = target.load(tmp_path)(task.example[0].numpy())
    with torch.no_grad():
        np.testing.assert_allclose(found, graph(*task.example).numpy(), atol=0.02 * float(np.abs(found).max()))


def test_the_convolution_computes_the_same_numbers() -> None:
    task = between(nn.AvgPool2d(3, 2, 1))
    graph = Quantize(placement="fuse_activations").apply(capture(task.model, task.example), task)
    made = averages_as_convolutions(graph)
    assert torch.ops.aten.avg_pool2d.default not in {n.target for n in made.graph.nodes}
    with torch.no_grad():
        step = float(graph(*task.example).abs().max()) / 100
        torch.testing.assert_close(made(*task.example), graph(*task.example), atol=step, rtol=0)


def test_float_graphs_stay_as_they_are_and_what_cannot_be_written_is_refused() -> None:
    task = between(nn.AvgPool2d(3, 1, 1))
    graph = capture(task.model, task.example)
    assert averages_as_convolutions(graph) is graph
    task = between(nn.AvgPool2d(3, 2, 1, ceil_mode=True))
    quantized = Quantize().apply(capture(task.model, task.example), task)
    with pytest.raises(Unsupported, match="must round its sizes down"):
        averages_as_convolutions(quantized)
