"""Activations that are rounded as they come: the torch graph is what the runtimes compute, others refuse by name."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import hasten
from hasten.errors import InvalidInput, Unsupported
from hasten.graph.capture import capture
from hasten.quantization import integer_reference
from hasten.quantization.dynamic import check_dynamic
from hasten.recipe import Recipe, make_target
from hasten.search.space import with_more_effort
from hasten.targets.inductor import Inductor
from hasten.targets.onnxruntime import OnnxRuntime
from hasten.targets.openvino import OpenVino
from hasten.task import Task
from hasten.techniques.quantize import Quantize

DYNAMIC = Quantize(activations="int8_dynamic")


class Layers(nn.Module):
    """Two layers of one input, a third, a layer norm; a convolution in front."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.norm = nn.Conv1d(8, 32, 1), nn.LayerNorm(32)
        self.a, self.b, self.out = nn.Linear(32, 64), nn.Linear(32, 64, bias=False), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.image(x).mT)
        y: Tensor = self.out(torch.sigmoid(self.a(x)) * self.b(x))
        return y


@pytest.fixture(scope="module")
def task() -> Task:
    torch.manual_seed(1)
    batch = torch.randn(16, 8, 5)
    return Task(Layers().eval(), (batch[:4],), holdout=[batch], calibration=[batch])


def _decibels(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10((b**2).mean() / ((a - b) ** 2).mean()))


def test_a_tensor_is_rounded_once_for_all_its_layers_and_only_linear_ones(task: Task) -> None:
    graph = DYNAMIC.apply(capture(task.model, task.example), task)
    assert sum("choose_qparams" in str(n.target) for n in graph.graph.nodes) == 2
    assert Counter(x.dtype for x in graph.state_dict().values() if x.ndim > 1) == {torch.int8: 3, torch.float32: 1}


def test_ranges_follow_the_input(task: Task) -> None:
    model = nn.Linear(16, 8).eval()
    example = torch.randn(8, 16)
    flat = Task(model, (example,), holdout=[example], calibration=[example])
    graph, x = DYNAMIC.apply(capture(model, (example,)), flat), 100 * torch.randn(8, 16)
    with torch.no_grad():
        assert _decibels(graph(x).numpy(), model(x).numpy()) > 35
        static = Quantize().apply(capture(model, (example,)), flat)(x).numpy()
        assert _decibels(static, model(x).numpy()) < 5
        assert torch.isfinite(graph(torch.zeros(8, 16))).all()


def test_onnx_runtime_multiplies_integers_as_torch_does(task: Task, tmp_path: Path) -> None:
    graph = DYNAMIC.apply(capture(task.model, task.example), task)
    OnnxRuntime(threads=1).compile(graph, task, tmp_path)
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert operators["DynamicQuantizeMatMul"] == 3
    assert not operators["MatMul"] + operators["Gemm"]
    for size in (4, 7):
        x = torch.randn(size, 8, 5)
        session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
        actual = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        with torch.no_grad():
            expected = graph(x).numpy()
        assert np.abs(actual - expected).max() <= (expected.max() - expected.min()) / 255
        (reference,) = integer_reference.run(graph, (x,))
        assert np.abs(reference - expected).max() <= (expected.max() - expected.min()) / 255


def test_openvino_keeps_weights_compressed_and_rounds_inputs_itself(task: Task, tmp_path: Path) -> None:
    graph = DYNAMIC.apply(capture(task.model, task.example), task)
    OpenVino(threads=1).compile(graph, task, tmp_path)
    actual = OpenVino(threads=1).load(tmp_path)(task.example[0].numpy())[0]
    with torch.no_grad():
        assert _decibels(actual, task.model(*task.example).numpy()) > 30
    assert 'element_type="u8"' in (tmp_path / "model.xml").read_text()


def test_a_target_without_such_kernels_refuses_by_name(task: Task, tmp_path: Path) -> None:
    graph = DYNAMIC.apply(capture(task.model, task.example), task)
    with pytest.raises(Unsupported, match="target inductor has no kernel for activations that are rounded as they"):
        check_dynamic(graph, Inductor())
    with pytest.raises(Unsupported, match="target null has no kernel"):
        hasten.compile(graph, task, "null", tmp_path / "null.hasten")
    check_dynamic(capture(task.model, task.example), Inductor())


def test_what_has_none_is_refused(task: Task) -> None:
    with pytest.raises(
        InvalidInput, match=r"`activations` int8_dynamic must come with a placement for it \(fuse_clamps"
    ):
        Quantize(activations="int8_dynamic", placement="symmetric")
    example = torch.randn(2, 3, 8)
    convolution = Task(nn.Conv1d(3, 4, 1).eval(), (example,), holdout=[example], calibration=[example])
    with pytest.raises(Unsupported, match="must have a linear layer for dynamic activations"):
        DYNAMIC.apply(capture(convolution.model, convolution.example), convolution)


def test_the_search_offers_it_for_transformers_where_the_target_has_it(task: Task) -> None:
    graph = capture(task.model, task.example)

    def offered(target: str, placement: str) -> set[object]:
        plain = Recipe((Quantize(placement=placement, rounding="nearest"),), make_target(target))
        steps = [step for recipe in with_more_effort(plain, graph, False) for step in recipe.steps]
        return {step.activations for step in steps if isinstance(step, Quantize)}

    assert offered("onnxruntime", "fuse_clamps") == {"int8", "int8_dynamic"}
    assert offered("tensorrt", "signed") == {"int8"}
