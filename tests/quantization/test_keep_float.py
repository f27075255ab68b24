"""Layers that stay in float do so in the graph that ONNX Runtime really runs, and integer ones stay integer."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from hasten.graph.capture import capture
from hasten.recipe import make_target
from hasten.targets.onnxruntime import OnnxRuntime
from hasten.task import Task
from hasten.techniques.quantize import Quantize

FLOAT = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
INTEGER = {"QLinearConv", "QGemm", "MatMulIntegerToFloat", "QLinearMatMul"}


class Residual(nn.Module):
    """The middle convolution stands between integers: its input and its output are rounded for others."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs[0](x).relu()
        x = (x + self.convs[2](self.convs[1](x).relu())).relu()
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


def mlp(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), activation, nn.Linear(16, 12), activation, nn.Linear(12, 4))


def optimised(graph: torch.fx.GraphModule, task: Task, folder: Path) -> tuple[float, onnx.ModelProto]:
    """How far the program is from the graph, of the largest output; and what ONNX Runtime runs."""
    target = OnnxRuntime(threads=1)
    target.compile(graph, task, folder)
    options = target.session_options()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    target.session(folder, options)
    (found,) = target.load(folder)(task.example[0].numpy())
    with torch.no_grad():
        expected = graph(*task.example).numpy()
    return float(np.abs(found - expected).max() / np.abs(expected).max()), onnx.load(folder / "optimised.onnx")


def task_of(model: nn.Module, *shape: int) -> Task:
    torch.manual_seed(0)
    calibration = [(torch.randn(*shape),) for _ in range(4)]
    return Task(model.eval(), calibration[0], holdout=[calibration[0]], calibration=calibration)


@pytest.mark.parametrize("kept", ["conv2d", "conv2d_1", "conv2d_2", "linear"])
def test_a_layer_between_integers_stays_in_float(kept: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    task = task_of(Residual(), 4, 3, 8, 8)
    graph = Quantize(keep_float=(kept,)).apply(capture(task.model, task.example), task)
    off, ran = optimised(graph, task, tmp_path)
    operators = Counter(node.op_type for node in ran.graph.node)
    assert sum(operators[name] for name in FLOAT) == 1
    assert sum(operators[name] for name in INTEGER) == 3
    # The same numbers as in the file; weights rounded a second time are several hundredths away.
    assert off < 1e-4
    floats = [numpy_helper.to_array(x) for x in ran.graph.initializer if x.data_type == onnx.TensorProto.FLOAT]
    assert any(x.ndim > 1 and len(np.unique(x)) > 32 for x in floats)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.LeakyReLU(), nn.Sigmoid()], ids=lambda x: type(x).__name__)
def test_an_activation_behind_an_integer_layer_does_not_make_it_float(activation: nn.Module, tmp_path: Path) -> None:
    torch.manual_seed(1)
    task = task_of(mlp(activation), 4, 8)
    graph = Quantize().apply(capture(task.model, task.example), task)
    off, ran = optimised(graph, task, tmp_path)
    operators = Counter(node.op_type for node in ran.graph.node)
    assert operators["QGemm"] == 3
    assert not FLOAT & set(operators)
    assert off < 0.02


def test_a_float_file_keeps_all_fusions(tmp_path: Path) -> None:
    torch.manual_seed(1)
    task = task_of(mlp(nn.Tanh()), 4, 8)
    _, ran = optimised(capture(task.model, task.example), task, tmp_path)
    assert [node.op_type for node in ran.graph.node] == ["FusedGemm", "FusedGemm", "Gemm"]
    assert make_target("onnxruntime") == OnnxRuntime()
