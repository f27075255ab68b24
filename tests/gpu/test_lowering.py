"""Graphs for Tensor Cores, checked on the CPU: the same functions, the same integers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hasten.errors import InvalidInput, Unsupported
from hasten.gpu import build, lowering, products
from hasten.graph.capture import capture
from hasten.graph.duplicate import duplicate
from hasten.recipe import make_target, make_technique
from hasten.targets.cuda import Cuda
from hasten.task import Task

aten = torch.ops.aten


class Net(nn.Module):
    """A first convolution of few channels, one for the kernel, a depthwise one, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, groups=32)
        self.linear = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.depthwise(torch.relu(self.second(torch.relu(self.first(x))))))
        logits: Tensor = self.linear(y.mean((2, 3)))
        return logits


def task_of(model: nn.Module, x: Tensor) -> Task:
    return Task(model=model.eval(), example=(x,), holdout=[(x, torch.zeros(len(x), dtype=torch.int64))])


def convolutional() -> Task:
    torch.manual_seed(0)
    return task_of(Net(), torch.randn(4, 3, 16, 16))


def perceptron() -> Task:
    torch.manual_seed(0)
    return task_of(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 16)), torch.randn(4, 32))


class Attention(nn.Module):
    """With a mask in float32, which what integer products give meets on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        self.register_buffer("mask", torch.triu(torch.full((6, 6), -9.0), 1))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2) + self.mask
        result: Tensor = torch.softmax(scores, -1) @ self.value(x)
        return result


def quantized(task: Task) -> torch.fx.GraphModule:
    return make_technique("quantize", {"placement": "fuse_activations"}).apply(capture(task.model, task.example), task)


def targets_of(graph: torch.fx.GraphModule) -> list[Any]:
    return [node.target for node in graph.graph.nodes]


def test_int8_layers_multiply_integers_and_give_what_the_graph_gives() -> None:
    task = convolutional()
    graph = quantized(task)
    with torch.no_grad():
        expected = graph(*task.example)
        assert lowering.lower_integers(graph, torch.float32) == 2
        found = graph(*task.example)
    called = targets_of(graph)
    assert called.count(products.int8_conv2d) == called.count(products.int8_linear) == 1
    # Few channels and groups stay as they are.
    assert called.count(aten.conv2d.default) == 2
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_a_plain_graph_has_no_integer_layer() -> None:
    task = convolutional()
    assert lowering.lower_integers(capture(task.model, task.example), torch.float32) == 0


def test_fp8_layers_are_close_and_their_weights_fill_the_range() -> None:
    task = perceptron()
    graph = capture(task.model, task.example)
    with torch.no_grad():
        expected = graph(*task.example)
        assert lowering.lower_fp8(graph) == 2
        found = graph(*task.example).float()
    # e4m3 has 3 bits of mantissa: an error of up to 1/16 in every factor.
    assert float((found - expected).abs().max()) < 0.08 * float(expected.abs().max())
    weight, scale = products.fp8_weight(task.model[0].weight.detach())  # type: ignore[index]
    assert float(weight.float().abs().max()) == 448.0
    assert scale.shape == (1, 64)


def test_fp8_without_a_fitting_layer_is_refused() -> None:
    task = task_of(nn.Linear(7, 16), torch.randn(2, 7))
    with pytest.raises(Unsupported, match="multiples of 16"):
        lowering.lower_fp8(capture(task.model, task.example))


def two_four(weight: Tensor) -> Tensor:
    groups = weight.reshape(len(weight), -1, 4)
    keep = groups.abs() >= groups.abs().sort(2).values[..., 2:3]
    return (groups * keep).reshape(weight.shape)


def test_only_two_four_weights_become_sparse_products(monkeypatch: pytest.MonkeyPatch) -> None:
    task = perceptron()
    first = task.model[0]  # type: ignore[index]
    assert not products.is_two_four(first.weight)
    with torch.no_grad():
        first.weight.copy_(two_four(first.weight))
    assert products.is_two_four(first.weight)
    # cuSPARSELt has no CPU form: its packing is left out, and its product is followed in shapes alone.
    monkeypatch.setattr(torch, "_cslt_compress", lambda weight: weight[:, : weight.shape[1] // 2])
    graph = capture(task.model, task.example)
    assert lowering.lower_sparse(graph, torch.float16) == 1
    assert targets_of(graph).count(products.sparse_linear) == 1
    x, packed, bias = (
        torch.empty(shape, dtype=torch.float16, device="meta") for shape in ((3, 5, 32), (64, 16), (64,))
    )
    found = products.sparse_linear(x, packed, bias)
    assert (found.shape, found.dtype) == ((3, 5, 64), torch.float16)


def test_dense_weights_are_refused_by_sparse() -> None:
    task = perceptron()
    with pytest.raises(Unsupported, match="PruneWeights"):
        lowering.lower_sparse(capture(task.model, task.example), torch.float16)


def test_the_package_runs_in_pieces_and_agrees(tmp_path: Path) -> None:
    """Everything but the device: export at one batch size, casts, compilation, loading, pieces."""
    target = make_target("cuda", {"precision": "fp16", "batch": 3, "autotune": False})
    assert isinstance(target, Cuda)
    task = perceptron()
    graph = quantized(task)
    target._compile_for("cpu", graph, task, tmp_path)
    assert json.loads((tmp_path / "inputs.json").read_text()) == [[[3, 32], "float32"]]
    with torch.no_grad():
        expected = graph(*task.example).numpy()
    (found,) = target._load_for("cpu", tmp_path)(task.example[0].numpy())
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


def test_half_precision_reaches_the_products() -> None:
    task = perceptron()
    program = build.lowered(capture(task.model, task.example), task.example, "cpu", "bf16", False, False, 0)
    layers = [n for n in program.graph.nodes if n.target == aten.addmm.default]
    assert layers
    assert {n.meta["val"].dtype for n in layers} == {torch.bfloat16}


@pytest.mark.parametrize("fp8", [False, True])
def test_what_autocast_changes_still_runs(fp8: bool) -> None:
    task = convolutional()
    graph = capture(task.model, task.example)
    program = build.lowered(graph, task.example, "cpu", "bf16", fp8, False, 0)
    with torch.no_grad():
        expected, found = graph(*task.example), program.module(check_guards=False)(*task.example)
    assert float((found - expected).abs().max()) < 0.1 * float(expected.abs().max())


def test_attention_between_fp8_layers_runs_in_halves() -> None:
    torch.manual_seed(0)
    task = task_of(Attention(), torch.randn(4, 6, 32))
    steps = {"weights": "fp8", "activations": "fp8"}
    graph = make_technique("quantize", steps).apply(capture(task.model, task.example), task)
    assert lowering.lower_fp8_layers(duplicate(graph), torch.float16) == 3
    program = build.lowered(graph, task.example, "cpu", "fp16", False, False, 0)
    with torch.no_grad():
        found, expected = program.module()(*task.example), graph(*task.example)
    assert (found.float() - expected).abs().max() <= 0.05 * expected.abs().max()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_attention_between_integer_products_runs_in_halves(precision: str) -> None:
    torch.manual_seed(0)
    task = task_of(Attention(), torch.randn(4, 6, 32))
    graph = quantized(task)
    assert lowering.lower_integers(duplicate(graph), build.DTYPES[precision]) == 3
    program = build.lowered(graph, task.example, "cpu", precision, False, False, 0)
    with torch.no_grad():
        found, expected = program.module()(*task.example), graph(*task.example)
    assert (found.float() - expected).abs().max() <= 0.02 * expected.abs().max()


def test_options_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(InvalidInput, match="`fp8` must come with precision 'bf16'"):
        Cuda(fp8=True)
    with pytest.raises(InvalidInput, match="`sparse` must come with"):
        Cuda(sparse=True)


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.machine.has_nvidia_gpu", lambda: False)
    assert "no CUDA GPU" in Cuda().missing()


@pytest.mark.parametrize(
    ("capability", "options", "missing"),
    [
        ((7, 5), {"precision": "fp16"}, ""),
        ((7, 5), {"precision": "bf16"}, "8.0 or newer for bf16"),
        ((7, 5), {"precision": "tf32"}, "8.0 or newer for tf32"),
        ((8, 6), {"precision": "bf16", "fp8": True}, "8.9 or newer for fp8"),
        ((8, 9), {"precision": "bf16", "fp8": True}, ""),
        ((7, 0), {"precision": "fp16", "sparse": True}, "8.0 or newer for sparse"),
        ((6, 1), {}, ""),
    ],
)
def test_a_gpu_that_is_too_old_is_named(
    capability: tuple[int, int], options: dict[str, Any], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.machine.has_nvidia_gpu", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in absent else object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    absent: set[str] = set()
    found = Cuda(**options).missing()
    assert missing in found
    assert bool(found) == bool(missing)
    absent.add("triton")
    assert Cuda(**options).missing() == "pip install triton"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "built for CUDA" in Cuda(**options).missing()


def test_onnxruntime_on_cuda_needs_its_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    target = make_target("onnxruntime", {"device": "cuda"})
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "onnxruntime-gpu" in target.missing()
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("hasten.machine.has_nvidia_gpu", lambda: False)
    assert "no CUDA GPU" in target.missing()
    assert make_target("onnxruntime").missing() == ""
