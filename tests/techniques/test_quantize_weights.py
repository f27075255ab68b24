from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from hasten.errors import InvalidInput, Unsupported
from hasten.graph.capture import capture
from hasten.graph.onnx import write_onnx
from hasten.targets.onnxruntime import OnnxRuntime
from hasten.targets.openvino import OpenVino
from hasten.task import Task
from hasten.techniques.quantize_weights import QuantizeWeights


@pytest.fixture
def task() -> Task:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 64)
    )
    x = torch.randn(4, 3, 8, 8)
    return Task(model.eval(), (x,), holdout=[x])


def error(task: Task, technique: QuantizeWeights) -> float:
    graph = capture(task.model, task.example)
    with torch.no_grad():
        reference, result = graph(*task.example), technique.apply(graph, task)(*task.example)
    return float((result - reference).square().mean() / reference.square().mean())


def test_fewer_bits_lose_more_and_groups_lose_less(task: Task) -> None:
    errors = [error(task, QuantizeWeights(bits=bits)) for bits in (8, 6, 4, 3, 2)]
    assert errors == sorted(errors)
    assert errors[0] < 1e-3
    assert error(task, QuantizeWeights(bits=4, granularity="group", group=16)) < errors[2]


@pytest.mark.parametrize(
    "technique",
    [
        QuantizeWeights(),
        QuantizeWeights(bits=4, granularity="group", group=16),
        QuantizeWeights(scheme="power_of_two", bits=4),
    ],
)
def test_the_runtimes_compute_what_torch_computes_from_int8_in_the_file(
    task: Task, technique: QuantizeWeights, tmp_path: Path
) -> None:
    graph = technique.apply(capture(task.model, task.example), task)
    assert not any(p.ndim > 1 for p in graph.parameters())
    with torch.no_grad():
        expected = graph(*task.example).numpy()
    # OpenVINO rounds the activations in front of compressed weights to 8 bits by itself, in groups of 32.
    for target, tolerance in ((OnnxRuntime(), 1e-5), (OpenVino(), 0.02)):
        folder = tmp_path / type(target).__name__
        folder.mkdir()
        target.compile(graph, task, folder)
        np.testing.assert_allclose(
            target.load(folder)(task.example[0].numpy())[0], expected, rtol=0, atol=tolerance * np.abs(expected).max()
        )
    write_onnx(graph, task.example, tmp_path / "model.onnx")
    file = onnx.load(tmp_path / "model.onnx")
    weights = [i for i in file.graph.initializer if i.data_type == onnx.TensorProto.INT8 and len(i.dims) > 1]
    assert sum(int(np.prod(w.dims)) for w in weights) == 8 * 27 + 64 * 128


def test_powers_of_two_are_exact_in_int8(task: Task) -> None:
    graph = QuantizeWeights(scheme="power_of_two", bits=4).apply(capture(task.model, task.example), task)
    for name, buffer in graph.named_buffers():
        if buffer.dtype == torch.int8:
            assert set(torch.unique(buffer.abs()).tolist()) <= {0, 1, 2, 4, 8, 16, 32, 64}
        elif name.endswith("_scale"):
            assert torch.equal(buffer.log2(), buffer.log2().round())


def test_a_layer_can_stay_in_float(task: Task) -> None:
    graph = QuantizeWeights(keep_float=("linear",)).apply(capture(task.model, task.example), task)
    assert sum(b.dtype == torch.int8 for b in graph.buffers()) == 1
    with pytest.raises(Unsupported, match="keep_float"):
        QuantizeWeights(keep_float=("nothing",)).apply(capture(task.model, task.example), task)


def test_more_than_four_bits_of_powers_are_refused() -> None:
    with pytest.raises(InvalidInput, match="power_of_two must have `bits` of 4, 3 or 2"):
        QuantizeWeights(scheme="power_of_two", bits=6)
