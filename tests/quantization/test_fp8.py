"""fp8 on the graph, where its accuracy is judged, and up to the launch in what cuda and TensorRT make of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import hasten
from hasten import environments
from hasten.errors import InvalidInput, Unsupported
from hasten.gpu import lowering, products
from hasten.graph.capture import as_tuple, capture
from hasten.graph.onnx import write_onnx
from hasten.graph.storage import load_graph, save_graph
from hasten.quantization.fp8 import FP8, LARGEST, fp8_as_operators, fp8_layer
from hasten.recipe import make_target
from hasten.targets.cuda import Cuda, _check_capability
from hasten.task import Task
from hasten.techniques.quantize import Quantize

FP8_QUANTIZE = Quantize(weights="fp8", activations="fp8")


class Network(nn.Module):
    """A convolution, and two linear layers that read the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3)
        self.a, self.b = nn.Linear(32, 16), nn.Linear(32, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu().mean((2, 3))
        y: Tensor = self.a(x) + self.b(x)
        return y


@pytest.fixture
def task() -> Task:
    torch.manual_seed(0)
    batches = [(torch.randn(4, 3, 8, 8),) for _ in range(3)]
    return Task(Network().eval(), batches[0], holdout=[batches[0]], calibration=batches)


def layers_of(graph: GraphModule) -> list[str]:
    return [node.name for node in graph.graph.nodes if fp8_layer(graph, node)]


def test_operands_are_rounded_to_fp8_and_the_network_stays_close(task: Task) -> None:
    graph = capture(task.model, task.example)
    made = FP8_QUANTIZE.apply(graph, task)
    assert len(layers_of(made)) == 3
    stored = [b for b in made.buffers() if b.dtype == FP8]
    assert sorted(len(b) for b in stored) == [16, 16, 32]
    # Every channel fills the range.
    assert all(float(b.float().flatten(1).abs().amax(1).min()) == LARGEST for b in stored)
    # Both linear layers read one rounded tensor, so that there are five casts to fp8's reader: 2 inputs, 3 weights.
    casts = [n for n in made.graph.nodes if n.target is torch.ops.aten._to_copy.default]
    assert [n.kwargs["dtype"] for n in casts].count(torch.float32) == 5
    with torch.no_grad():
        expected, found = graph(*task.example), made(*task.example)
        other = made(torch.randn(2, 3, 8, 8))
    # 3 bits of mantissa: up to 1/16 in every factor, less over a sum.
    assert 1e-4 < float((found - expected).norm() / expected.norm()) < 0.06
    assert other.shape == (2, 16)


def test_the_numbers_are_those_of_the_definition(task: Task) -> None:
    layer = nn.Linear(16, 16).eval()
    x = torch.randn(5, 16)
    own = Task(layer, (x,), holdout=[x], calibration=[x])
    made = FP8_QUANTIZE.apply(capture(layer, (x,)), own)
    step = float(x.abs().max()) / LARGEST
    rows = layer.weight.detach().abs().amax(1, keepdim=True) / LARGEST
    with torch.no_grad():
        w = (layer.weight / rows).to(FP8).float() * rows
        expected = nn.functional.linear((x / step).to(FP8).float() * step, w, layer.bias)
        torch.testing.assert_close(made(x), expected, rtol=1e-5, atol=1e-5)
        # What was never seen saturates instead of becoming not a number.
        assert bool(made(x * 1e6).isfinite().all())


def test_it_is_stored_and_loaded(task: Task, tmp_path: Path) -> None:
    made = FP8_QUANTIZE.apply(capture(task.model, task.example), task)
    save_graph(made, tmp_path)
    loaded = load_graph(tmp_path)
    assert len(layers_of(loaded)) == 3
    with torch.no_grad():
        assert torch.equal(loaded(*task.example), made(*task.example))


def test_layers_can_stay_and_nothing_to_do_is_refused(task: Task) -> None:
    graph = capture(task.model, task.example)
    kept = Quantize(weights="fp8", activations="fp8", keep_float=("conv2d",)).apply(graph, task)
    assert len(layers_of(kept)) == 2
    with pytest.raises(Unsupported, match="has no 'head'"):
        Quantize(weights="fp8", activations="fp8", keep_float=("head",)).apply(graph, task)
    relu = Task(nn.ReLU(), task.example, holdout=[task.example])
    with pytest.raises(Unsupported, match="could be fp8"):
        FP8_QUANTIZE.apply(capture(relu.model, relu.example), relu)


def test_only_one_of_the_operands_in_fp8_is_refused() -> None:
    with pytest.raises(InvalidInput, match="both be fp8 or neither, but got 'fp8' and 'int8'"):
        Quantize(weights="fp8")
    with pytest.raises(InvalidInput, match="but got 'int8' and 'fp8'"):
        Quantize(activations="fp8")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "eager", "inductor"])
def test_a_target_of_the_cpu_refuses_it(name: str, task: Task, tmp_path: Path) -> None:
    made = FP8_QUANTIZE.apply(capture(task.model, task.example), task)
    with pytest.raises(Unsupported, match=f"target {name} has no kernel for fp8, but 3 layers .* Use the target cuda"):
        hasten.compile(made, task, name, tmp_path / "x.hasten")


def test_linear_layers_become_fp8_products(task: Task) -> None:
    made = FP8_QUANTIZE.apply(capture(task.model, task.example), task)
    with torch.no_grad():
        expected = made(*task.example)
        assert lowering.lower_fp8_layers(made, torch.float32) == 2
        found = made(*task.example)
    called = [node.target for node in made.graph.nodes]
    assert called.count(products.fp8_product) == 2
    assert torch.ops.aten.linear.default not in called
    # The same fp8 operands, summed in float32 and rounded to bfloat16.
    assert float((found - expected).abs().max()) < 0.01 * float(expected.abs().max())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_package_for_cuda_is_made_but_for_the_device(precision: str, task: Task, tmp_path: Path) -> None:
    target = make_target("cuda", {"precision": precision, "autotune": False})
    assert isinstance(target, Cuda)
    made = FP8_QUANTIZE.apply(capture(task.model, task.example), task)
    target._compile_for("cpu", made, task, tmp_path)
    with torch.no_grad():
        expected = made(*task.example).numpy()
    (found,) = target._load_for("cpu", tmp_path)(task.example[0].numpy())
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


def test_a_gpu_without_fp8_is_named(task: Task) -> None:
    graph = capture(task.model, task.example)
    made = FP8_QUANTIZE.apply(graph, task)
    with pytest.raises(Unsupported, match=r"8\.9 or newer, but this one has 8\.0"):
        _check_capability(made, (8, 0))
    _check_capability(made, (8, 9))
    _check_capability(graph, (7, 5))


def test_the_onnx_file_has_fp8_operators_and_numbers(task: Task, tmp_path: Path) -> None:
    graph = capture(task.model, task.example)
    assert fp8_as_operators(graph) is graph
    made = FP8_QUANTIZE.apply(graph, task)
    write_onnx(fp8_as_operators(made), task.example, tmp_path / "model.onnx", 19)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model)
    counted = [node.op_type for node in model.graph.node]
    # Two inputs, one of them read by two layers, and three weights.
    assert counted.count("DequantizeLinear") == 5
    assert counted.count("Cast") == 0
    weights = [x for x in model.graph.initializer if x.data_type == onnx.TensorProto.FLOAT8E4M3FN and len(x.dims) > 1]
    assert len(weights) == 3
    with torch.no_grad():
        expected = as_tuple(made(*task.example))[0].numpy()
    from onnx.reference import ReferenceEvaluator

    found: Any = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: task.example[0].numpy()})
    np.testing.assert_allclose(found[0], expected, atol=1e-3 * np.abs(expected).max())


def test_tensorrt_builds_an_engine_of_it_where_the_gpu_multiplies_fp8(task: Task, tmp_path: Path) -> None:
    made = FP8_QUANTIZE.apply(capture(task.model, task.example), task)
    with pytest.raises(Unsupported, match=r"8\.9 or 12\.0, but got 8\.0"):
        make_target("tensorrt", {"capability": "8.0"}).compile(made, task, tmp_path)
    if need := environments.missing("tensorrt"):
        pytest.skip(f"tensorrt needs: {need}")
    make_target("tensorrt", {"capability": "8.9"}).compile(made, task, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["quantize"] >= 2
    assert report["bytes"] == (tmp_path / "model.engine").stat().st_size
