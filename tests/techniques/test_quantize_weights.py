from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from torch import Tensor, nn

from hasten.errors import InvalidInput, Unsupported
from hasten.graph.capture import capture
from hasten.quantization import packing
from hasten.recipe import Target
from hasten.targets.onnxruntime import OnnxRuntime
from hasten.targets.openvino import OpenVino
from hasten.task import Task
from hasten.techniques.quantize import Quantize
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
    assert error(task, QuantizeWeights(bits=4, group=16)) < errors[2]


TECHNIQUES = [
    QuantizeWeights(rounding="nearest"),
    QuantizeWeights(bits=4, group=16),
    QuantizeWeights(scheme="power_of_two", bits=4),
]


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_the_runtimes_compute_what_torch_computes(
    task: Task, technique: QuantizeWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = technique.apply(capture(task.model, task.example), task)
    assert not any(p.ndim > 1 for p in graph.parameters())
    with torch.no_grad():
        expected = graph(*task.example).numpy()

    def check(target: Target, tolerance: float, name: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        target.compile(graph, task, folder)
        found = target.load(folder)(task.example[0].numpy())[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())

    # Both runtimes round the activations in front of packed weights to 8 bits by themselves, in groups of 32 or more.
    check(OnnxRuntime(), 0.03, "onnxruntime")
    check(OpenVino(), 0.03, "openvino")
    # Without that rounding the packed weights are, to the last bits, those of the graph.
    monkeypatch.setattr(packing, "_INT8_PRODUCTS", 0)
    check(OnnxRuntime(), 1e-5, "float")


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_weights_are_integers_in_the_file(task: Task, technique: QuantizeWeights, tmp_path: Path) -> None:
    graph = technique.apply(capture(task.model, task.example), task)
    OnnxRuntime().compile(graph, task, tmp_path)
    file = onnx.load(tmp_path / "model.onnx")
    stored = {i.name: i for i in file.graph.initializer if i.data_type in (TensorProto.INT8, TensorProto.UINT8)}
    bits = 4 if technique.bits == 4 and technique.scheme == "linear" else 8
    assert sum(int(np.prod(w.dims)) for w in stored.values() if len(w.dims) > 1) == 8 * 27 + 64 * 128 * bits // 8
    assert [node.op_type for node in file.graph.node].count("MatMulNBits") == 1
    assert not [i for i in file.graph.initializer if i.data_type == TensorProto.FLOAT and np.prod(i.dims) > 64 * 8]


class Tokens(nn.Module):
    """An embedding whose table is also the output layer's weight, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle = nn.Embedding(96, 32), nn.Linear(32, 32, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.linear(torch.tanh(self.middle(self.table(ids))), self.table.weight)


@pytest.mark.parametrize("target", [OnnxRuntime(), OpenVino()])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_tied_embedding_becomes_integers_on_both_sides(bits: int, target: Target, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 96, (4, 7))
    task = Task(Tokens().eval(), (ids,), holdout=[ids])
    graph = QuantizeWeights(bits=bits, group=32).apply(capture(task.model, task.example), task)
    assert not any(p.is_floating_point() and p.ndim > 1 for p in graph.parameters())
    with torch.no_grad():
        expected, exact = graph(ids), task.model(ids)
    assert (expected - exact).square().mean() < (0.02 if bits == 4 else 2e-4) * exact.square().mean()
    target.compile(graph, task, tmp_path)
    found = target.load(tmp_path)(ids.numpy())[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=0.03 * float(expected.abs().max()))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([4, 8]),
    st.sampled_from([16, 32, 64, 128]),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_packing_loses_nothing(bits: int, block: int, rows: int, blocks: int, seed: int) -> None:
    top = 2 ** (bits - 1) - 1
    generator = torch.Generator().manual_seed(seed)
    integers = torch.randint(-top, top + 1, (rows, blocks * block), generator=generator, dtype=torch.int8)
    packed = packing.pack(integers, bits, block)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, blocks, block * bits // 8)
    halves = packed if bits == 8 else torch.stack([packed & 15, packed >> 4], -1)
    assert torch.equal(halves.reshape(rows, -1).short() - 2 ** (bits - 1), integers.short())


def test_a_layer_with_integer_activations_is_left_to_integer_kernels(task: Task) -> None:
    graph = Quantize().apply(capture(task.model, task.example), task)
    assert packing.pack_products(graph) is graph


def test_rounding_against_data_helps_low_bits(task: Task) -> None:
    errors = [error(task, QuantizeWeights(bits=3, group=16, rounding=r)) for r in ("nearest", "gptq", "adaround")]
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.7 * errors[0]


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
