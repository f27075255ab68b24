"""Networks that are built to have one trouble each: its reason is said of them, and not of those without it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hasten
from hasten.diagnosis.ceilings import Ceilings, ceilings
from hasten.diagnosis.child import profile
from hasten.diagnosis.profilers.record import of_undisturbed_calls, undisturbed
from hasten.diagnosis.reasons import ISLAND, LAUNCH, LAYOUT, MEMORY, NO_INTEGER_KERNEL, UNFUSED, Situation, reason
from hasten.diagnosis.roofline import Floor, floor_of, raised
from hasten.diagnosis.rows import computes, rows_of
from hasten.diagnosis.work import read_work
from hasten.recipe import make_target


@pytest.fixture(scope="module")
def limits(cache: None) -> Ceilings:
    return ceilings()


def said(
    model: nn.Module, x: Tensor, limits: Ceilings, folder: Path, quantize: bool = False
) -> list[tuple[str, str, str]]:
    """(label, kind, reason) of every node that ONNX Runtime executes."""
    task = hasten.Task(model.eval(), (x,), holdout=[x], calibration=[x])
    graph = hasten.capture(model, (x,))
    if quantize:
        graph = hasten.Quantize(samples=1, rounding="nearest", bias_correction=False).apply(graph, task)
    target = make_target("onnxruntime")
    folder.mkdir()
    target.compile(graph, task, folder)
    inputs = [x[:1].numpy()]
    found, work = profile(target, folder, inputs, 0.2), read_work(folder / "model.onnx", inputs)
    rows = rows_of(found, work, work.layers)
    limits, _ = raised(limits, [(r.layers, r.precision, r.time_us, "here", work.weights) for r in rows])
    situation = Situation("onnxruntime", "int8" if quantize else "fp32", limits, False, {})
    answers = []
    for row in rows:
        floors = [floor_of(layer, row.precision, limits, work.weights) for layer in row.layers]
        floor = Floor(*np.sum([list(vars(f).values()) for f in floors], axis=0)) if floors else None
        answers.append((row.label, row.kind, reason(row, floor, situation)))
    return answers


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(32, 64, 3, padding=1)
        self.middle: nn.Module = nn.Conv2d(64, 64, 3, padding=1)
        self.last = nn.Conv2d(64, 64, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(torch.relu(self.middle(torch.relu(self.first(x))))))


class Transposed(Convolutions):
    """Its middle layer has no integer kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.ConvTranspose2d(64, 64, 3, padding=1)


IMAGE = (4, 32, 40, 40)


@pytest.mark.slow  # what a reason says rests on times, which a busy machine bends
def test_a_network_without_trouble_has_none(limits: Ceilings, tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = said(Convolutions(), torch.randn(IMAGE), limits, tmp_path / "plain")
    layers = {label: why for label, kind, why in found if "Conv" in kind}
    assert set(layers) == {"first", "middle", "last"}
    assert not {ISLAND, NO_INTEGER_KERNEL, UNFUSED, MEMORY} & set(layers.values())
    assert not {ISLAND, NO_INTEGER_KERNEL} & {why for *_, why in found}


@pytest.mark.slow  # what a reason says rests on times, which a busy machine bends
def test_a_float_layer_among_integer_ones_is_named_and_so_are_the_conversions(limits: Ceilings, tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = said(Transposed(), torch.randn(IMAGE), limits, tmp_path / "island", quantize=True)
    assert [why for _, kind, why in found if "ConvTranspose" in kind] == [NO_INTEGER_KERNEL]
    integer = [why for _, kind, why in found if kind == "QLinearConv"]
    assert len(integer) == 2
    assert NO_INTEGER_KERNEL not in integer
    conversions = [why for _, kind, why in found if kind in ("QuantizeLinear", "DequantizeLinear")]
    assert len(conversions) >= 2
    assert set(conversions) == {ISLAND}


class Residual(nn.Module):
    """A product of two branches: no convolution takes it in."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) * self.other(x)


@pytest.mark.slow  # what a reason says rests on times, which a busy machine bends
def test_a_product_of_branches_is_unfused(limits: Ceilings, tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = said(Residual(), torch.randn(IMAGE), limits, tmp_path / "branches")
    assert [why for _, kind, why in found if kind == "Mul"] == [UNFUSED]


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x.permute(0, 3, 1, 2), 1)


@pytest.mark.slow  # what a reason says rests on times, which a busy machine bends
def test_moved_data_is_a_layout_conversion(limits: Ceilings, tmp_path: Path) -> None:
    found = said(Turned(), torch.randn(4, 64, 64, 64), limits, tmp_path / "turned")
    assert LAYOUT in [why for _, kind, why in found if kind == "Transpose"]


@pytest.mark.slow  # what a reason says rests on times, which a busy machine bends
def test_one_row_through_a_huge_matrix_is_memory_bound(limits: Ceilings, tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = said(nn.Linear(4096, 4096, bias=False), torch.randn(2, 4096), limits, tmp_path / "huge")
    assert [why for _, kind, why in found if kind in ("Gemm", "MatMul", "FusedGemm")] == [MEMORY]


@pytest.mark.slow  # what a reason says rests on times, which a busy machine bends
def test_tiny_layers_are_launch_bound(limits: Ceilings, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.Softmax(1))])
    found = said(net, torch.randn(2, 8), limits, tmp_path / "tiny")
    assert {why for *_, why in found} == {LAUNCH}


@pytest.mark.parametrize("kind", ["linear", "QLinearConv", "FusedMatMul", "Gemm", "addmm", "FullyConnected"])
def test_products_compute(kind: str) -> None:
    assert computes(kind)


@pytest.mark.parametrize("kind", ["QuantizeLinear", "DequantizeLinear", "QLinearAdd", "Convert", "Transpose"])
def test_rounding_and_adding_do_not(kind: str) -> None:
    assert not computes(kind)


def test_times_of_nodes_are_those_of_the_same_calls() -> None:
    # Each node is quick in other calls: no call is as quick as both at their quickest.
    times = {"a": [1.0, 9.0, 5.0, 5.0], "b": [9.0, 1.0, 4.0, 6.0], "twice": [2.0] * 8}
    assert of_undisturbed_calls({"a": times["a"], "b": times["b"]}) == {"a": 5.0, "b": 4.0}
    assert undisturbed(times["a"]) + undisturbed(times["b"]) == 2.0
    assert of_undisturbed_calls(times)["twice"] == 2.0
