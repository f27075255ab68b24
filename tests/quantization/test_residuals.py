"""Residual additions run on integers whatever the shortcut is, rounded where each runtime's kernels round."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from hasten.graph.capture import capture
from hasten.quantization import integer_reference
from hasten.targets.onnxruntime import OnnxRuntime
from hasten.targets.openvino import OpenVino
from hasten.task import Task
from hasten.techniques.quantize import Quantize


class Shortcuts(nn.Module):
    """Shortcuts over one and two convolutions, a projection, and one that is strided and padded with channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.alone = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.first, self.second = nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.main, self.projection = nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 16, 1)
        self.wide, self.last = nn.Conv2d(16, 32, 3, 2, 1), nn.Conv2d(32, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.alone(x))
        x = torch.relu(x + self.second(torch.relu(self.first(x))))
        x = torch.relu(self.main(x) + self.projection(x))
        x = torch.relu(self.wide(x) + nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8)))
        y: Tensor = self.last(x)
        return y


@pytest.fixture(scope="module")
def task() -> Task:
    torch.manual_seed(1)
    batch = torch.randn(4, 3, 16, 16)
    return Task(Shortcuts().eval(), (batch,), holdout=[batch], calibration=[batch])


def _quantized(task: Task, placement: str) -> GraphModule:
    return Quantize(placement=placement).apply(capture(task.model, task.example), task)


def _rounded(graph: GraphModule) -> list[str]:
    """What is rounded and not merely passed on in the same integers."""
    nodes = [n for n in graph.graph.nodes if str(n.target).startswith("quantized_decomposed.quantize_per_tensor")]
    return [str(n.args[0].target).removeprefix("aten.") for n in nodes]


def test_a_sum_is_rounded_once_where_the_kernel_of_a_convolution_adds(task: Task) -> None:
    rounded = Counter(_rounded(_quantized(task, "fuse_activations")))
    # The convolution whose kernel would write over its own input, and one of the two that are added.
    assert rounded["conv2d.default"] == 2
    assert rounded["relu.default"] == 6
    assert rounded["pad.default"] == 1


def test_every_convolution_rounds_where_a_kernel_ends_in_integers(task: Task) -> None:
    rounded = Counter(_rounded(_quantized(task, "fuse_clamps")))
    assert rounded["conv2d.default"] == 6
    assert rounded["relu.default"] == 6


def test_openvino_computes_what_the_integer_reference_does(task: Task, tmp_path: Path) -> None:
    graph = _quantized(task, "fuse_activations")
    OpenVino(threads=1).compile(graph, task, tmp_path)
    actual = OpenVino(threads=1).load(tmp_path)(task.example[0].numpy())[0]
    (reference,) = integer_reference.run(graph, task.example)
    assert np.abs(actual - reference).max() <= 1e-3 * (reference.max() - reference.min()) / 255
    nodes = ov.Core().compile_model(tmp_path / "model.xml", "CPU").get_runtime_model().get_ops()
    told = [(x["layerType"].astype(str), x["runtimePrecision"].astype(str)) for x in (n.get_rt_info() for n in nodes)]
    assert [precision for kind, precision in told if kind == "Convolution"] == ["u8"] * 8
    assert Counter(kind for kind, _ in told)["Eltwise"] == 1


def test_onnx_runtime_adds_integers(task: Task, tmp_path: Path) -> None:
    OnnxRuntime(threads=1).compile(_quantized(task, "fuse_clamps"), task, tmp_path)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert operators["QLinearAdd"] == 4
    assert operators["QLinearConv"] == 8
    assert not operators["Add"]
