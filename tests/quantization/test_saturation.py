import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hasten
from hasten import machine
from hasten.quantization import integer_reference, saturation
from hasten.quantization.integer_reference import saturating_product
from hasten.quantization.saturation import SaturationWarning, saturating_layers

OLD, NEW = frozenset({"avx2", "avx512f"}), frozenset({"avx2", "avx512f", "avx512_vnni"})


@pytest.fixture
def task() -> hasten.Task:
    """A layer whose inputs and weights are all near the top, so that every pair of products is as large as can be."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 3))
    first = model[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        first.weight.uniform_(0.9, 1.0)
    x = torch.rand(32, 16) * 0.1 + 0.9
    return hasten.Task(model.eval(), (x[:4],), holdout=[x], calibration=[x])


def test_what_the_flags_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, expected in ((OLD, True), (NEW, False), (frozenset({"avx2", "avx_vnni"}), False), (frozenset(), False)):
        monkeypatch.setattr(machine, "cpu_flags", lambda flags=flags: flags)
        assert machine.cpu_saturates_int8() is expected


def test_seven_bits_do_not_saturate_where_eight_do(task: hasten.Task) -> None:
    graph = hasten.capture(task.model, task.example)
    for bits, saturates in ((8, True), (7, False)):
        quantized = hasten.Quantize(weight_bits=bits).apply(graph, task)
        assert bool(saturating_layers(quantized)) is saturates
        exact = integer_reference.run(quantized, task.example)[0]
        found = integer_reference.run(quantized, task.example, saturating=True)[0]
        assert bool(np.abs(found - exact).max() > 0.1 * np.abs(exact).max()) is saturates


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.sampled_from([64, 127]), st.integers(0, 999))
def test_the_saturating_product_is_exact_within_seven_bits(k: int, n: int, top: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, weight = rng.integers(0, 256, (3, k)), rng.integers(-top, top + 1, (n, k))
    exact, found = x @ weight.T, saturating_product(x, weight)
    if top == 64:
        np.testing.assert_array_equal(found, exact)
    else:
        assert (np.abs(found) <= 32768 * ((k + 1) // 2)).all()


def test_compiling_warns_on_an_old_cpu_and_names_the_remedy(
    task: hasten.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = hasten.capture(task.model, task.example)
    eight, seven = (hasten.Quantize(weight_bits=bits).apply(graph, task) for bits in (8, 7))
    monkeypatch.setattr(saturation, "cpu_saturates_int8", lambda: True)
    with pytest.warns(SaturationWarning, match=r"weight_bits=7"):
        hasten.compile(eight, task, "onnxruntime", tmp_path / "eight")
    with warnings.catch_warnings():
        warnings.simplefilter("error", SaturationWarning)
        hasten.compile(seven, task, "onnxruntime", tmp_path / "seven")
        monkeypatch.setattr(saturation, "cpu_saturates_int8", lambda: False)
        hasten.compile(eight, task, "onnxruntime", tmp_path / "new")


@pytest.mark.parametrize("bias", [True, False])
def test_layers_with_and_without_bias_are_named(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 4, bias=bias)).eval()
    with torch.no_grad():
        next(model.parameters()).uniform_(0.9, 1.0)
    x = torch.rand(32, 16) * 0.1 + 0.9
    task = hasten.Task(model, (x[:4],), holdout=[x], calibration=[x])
    assert len(saturating_layers(hasten.Quantize().apply(hasten.capture(model, (x[:4],)), task))) == 1


def test_without_saturation_the_hardware_s_sums_are_the_exact_ones() -> None:
    """Also where the input's zero point is not 0, whose part is taken off."""
    torch.manual_seed(0)
    x = torch.randn(64, 16) + 0.5
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 3)).eval()
    task = hasten.Task(model, (x[:4],), holdout=[x], calibration=[x])
    graph = hasten.Quantize(weight_bits=7).apply(hasten.capture(model, (x[:4],)), task)
    exact, found = (integer_reference.run(graph, (x,), saturating=hardware)[0] for hardware in (False, True))
    np.testing.assert_array_equal(found, exact)


@pytest.mark.parametrize(
    ("pair", "saturates"),
    [
        ((127, 1), False),  # 255 * 128 fits 16 bits,
        ((127, 2), True),  # and 255 * 129 does not
        ((127, 40), True),
        ((-127, -1), False),
        ((-127, -2), True),
        ((127, -127), False),
    ],
)
def test_two_weights_of_one_sign_saturate(pair: tuple[int, int], saturates: bool) -> None:
    """Weights of 8 bits in a channel whose largest is 127, so that they are stored as they are."""
    model = nn.Sequential(nn.Linear(6, 2, bias=False)).eval()
    with torch.no_grad():
        next(model.parameters()).copy_(torch.tensor([[*pair, 0, 0, 0, 0.0]] * 2) / 127)
    x = torch.rand(32, 6)
    task = hasten.Task(model, (x[:4],), holdout=[x], calibration=[x])
    quantized = hasten.Quantize(weight_bits=8, rounding="nearest").apply(hasten.capture(model, (x[:4],)), task)
    assert bool(saturating_layers(quantized)) is saturates


def test_a_single_weight_per_row_cannot_saturate() -> None:
    model = nn.Sequential(nn.Linear(1, 2, bias=False)).eval()
    x = torch.rand(32, 1)
    task = hasten.Task(model, (x[:4],), holdout=[x], calibration=[x])
    quantized = hasten.Quantize(weight_bits=8, rounding="nearest").apply(hasten.capture(model, (x[:4],)), task)
    assert saturating_layers(quantized) == []


@pytest.mark.parametrize(
    ("x", "weight", "expected"),
    [
        ([255, 255, 3, 4], [127, 127, -5, 6], 32767 + 9),
        ([255, 255, 3, 4], [-128, -128, 5, 6], -32768 + 39),
        ([255, 1, 255, 1], [127, 127, 127, 127], 2 * 32512),
        ([255, 255, 255], [127, 1, 127], 32640 + 32385),  # the last stands alone
        ([255, 255, 255], [127, 2, 127], 32767 + 32385),
    ],
)
def test_neighbours_are_added_in_16_bits(x: list[int], weight: list[int], expected: int) -> None:
    assert saturating_product(np.array([x]), np.array([weight])).tolist() == [[expected]]
