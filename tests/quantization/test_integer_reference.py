from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hasten.graph.capture import capture
from hasten.quantization import integer_reference
from hasten.quantization.fixed_point import multipliers, round_shift
from hasten.recipe import make_technique
from hasten.targets.onnxruntime import OnnxRuntime
from hasten.targets.openvino import OpenVino
from hasten.task import Task
from hasten.techniques.quantize import Quantize


@settings(max_examples=200, deadline=None)
@given(st.integers(-(2**60), 2**60), st.integers(0, 61))
@example(2, 2)
@example(6, 2)
@example(10, 2)
@example(-2, 2)
@example(-6, 2)
@example(5, 1)
def test_the_shift_rounds_half_to_even(value: int, shift: int) -> None:
    assert int(round_shift(np.array([value]), shift)[0]) == round(Fraction(value, 2**shift))


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-9, 1e3))
def test_a_multiplier_has_31_bits(factor: float) -> None:
    (m,), shift = multipliers(np.array([factor]))
    assert abs(float(m[0]) / 2.0**shift - factor) <= factor * 2**-30
    assert m[0] < 2**31


class Network(nn.Module):
    """Every operator that has an integer form: padding, grouped and strided convolution, additions, pools, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad2d((0, 1, 2, 1)), nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU6())
        self.grouped = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 2, 2, groups=4), nn.ReLU())
        self.point = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.point(self.grouped(x)))
        x = nn.functional.max_pool2d(x, 2)
        result: Tensor = self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return result


def test_torch_and_the_runtimes_agree_with_the_reference(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batches = [torch.randn(4, 3, 16, 16) for _ in range(4)]
    task = Task(Network().eval(), (batches[0],), holdout=batches, calibration=batches)
    graph = Quantize().apply(capture(task.model, task.example), task)
    (reference,) = integer_reference.run(graph, task.example)
    step = (reference.max() - reference.min()) / 255
    with torch.no_grad():
        assert np.abs(graph(*task.example).numpy() - reference).max() <= step
    for target in (OnnxRuntime(), OpenVino()):
        folder = tmp_path / type(target).__name__
        folder.mkdir()
        target.compile(graph, task, folder)
        assert np.abs(target.load(folder)(batches[0].numpy())[0] - reference).max() <= step

    found = integer_reference.differences(graph, task.example)
    # Input, stem, grouped, point, sum, max pool, average pool, flatten.
    assert len(found) == 8
    # On the same integers torch's float32 sums round as the fixed-point ones do, but for rare ties.
    assert max(difference.max_steps for difference in found) <= 1
    assert max(difference.share for difference in found) < 0.01


def test_another_rounding_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    batches = [torch.randn(4, 3, 16, 16) for _ in range(2)]
    task = Task(Network().eval(), (batches[0],), holdout=batches, calibration=batches)
    graph = Quantize().apply(capture(task.model, task.example), task)
    monkeypatch.setattr(integer_reference, "round_shift", lambda values, shift: values >> shift)
    found = {d.operator: d for d in integer_reference.differences(graph, task.example)}
    assert found["aten.hardtanh.default"].max_steps == 1
    assert found["aten.hardtanh.default"].share > 0.2
    # Choosing a maximum rounds nothing.
    assert found["aten.max_pool2d.default"].max_steps == 0


@pytest.mark.parametrize(
    "clamp",
    [
        nn.ReLU(),
        nn.ReLU6(),
        nn.Hardtanh(),
        nn.Hardtanh(-0.1, 0.2),
        lambda x: x.clamp(min=0.1),
        lambda x: x.clamp(max=0.1),
        lambda x: x.clamp(-0.3, 0.05),
    ],
)
@pytest.mark.parametrize("placement", ["fuse_clamps", "symmetric"])
def test_every_clamp_has_its_own_ends(clamp: Callable[[Tensor], Tensor], placement: str) -> None:
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.second(clamp(self.first(x)))
            return result

    torch.manual_seed(0)
    x = torch.randn(64, 8)
    task = Task(Clamped().eval(), (x[:4],), holdout=[x], calibration=[x])
    graph = make_technique("quantize", {"placement": placement}).apply(capture(task.model, task.example), task)
    (reference,) = integer_reference.run(graph, (x,))
    with torch.no_grad():
        expected = graph(x).numpy()
    assert np.abs(expected - reference).max() <= np.ptp(expected) / 200


@pytest.mark.parametrize(
    ("stride", "padding", "dilation"), [([2, 1], [1, 2], [1, 3]), ([1], [2], [2]), ([3, 2], [0], [1])]
)
@pytest.mark.parametrize("groups", [1, 2])
def test_sums_of_a_convolution_are_those_of_torch(
    stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.integers(-99, 99, (2, 4, 9, 8)), rng.integers(-99, 99, (6, 4 // groups, 3, 2))
    found = integer_reference._conv2d(x, weight, (x, weight, None, stride, padding, dilation, groups))
    real, kernel = torch.from_numpy(x).double(), torch.from_numpy(weight).double()
    expected = nn.functional.conv2d(real, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups)
    np.testing.assert_array_equal(found, expected.long().numpy())
    plain = integer_reference._conv2d(x[:, : 4 // groups], weight, (x, weight))
    np.testing.assert_array_equal(plain, nn.functional.conv2d(real[:, : 4 // groups], kernel).long().numpy())


def test_a_sum_of_terms_in_two_scales_is_rounded_once_and_held_to_its_ends() -> None:
    terms = ((np.array([10, -10, 3, 400]), np.array(0.5)), (np.array([1, 1, 2, 0]), np.array(0.25)))
    made = integer_reference.Sum(terms)
    assert made.to_float().tolist() == [5.25, -4.75, 2.0, 200.0]
    assert made.round_to(0.5, 3, -128, 127).tolist() == [10 + 3, -10 + 3, 4 + 3, 127]  # 10.5 and -9.5 to even
    held = integer_reference.Sum(terms, low=-1.0, high=4.0)
    assert held.to_float().tolist() == [4.0, -1.0, 2.0, 4.0]
    assert held.round_to(0.5, 3, -128, 127).tolist() == [8 + 3, -2 + 3, 4 + 3, 8 + 3]
    assert held.round_to(0.5, 3, 2, 9).tolist() == [9, 2, 7, 9]


def test_integers_stand_for_their_distance_from_the_zero_point() -> None:
    made = integer_reference.Integers(np.array([7, -1, 3]), np.array(0.5), 3)
    assert made.centered().tolist() == [4, -4, 0]
    assert made.to_float().tolist() == [2, -2, 0]


@pytest.mark.parametrize(
    "operator",
    [
        lambda x: nn.functional.pad(x, (1, 0, 2, 3)),
        lambda x: nn.functional.pad(x, (1, 2, 0, 0), value=0.0),
        lambda x: nn.functional.pad(x, (1, 2, 0, 1), value=1.5),
        lambda x: nn.functional.pad(x, (1, 2, 0, 1), mode="replicate"),
        lambda x: nn.functional.adaptive_avg_pool2d(x, 1).expand(-1, -1, 3, 3),
        lambda x: nn.functional.adaptive_avg_pool2d(x, (2, 3)),
        lambda x: nn.functional.max_pool2d(x, 2, 1)[:, :, 1:].transpose(2, 3),
        lambda x: x + x.flip(2) + x,
        lambda x: (x + 1.5).relu(),
        lambda x: torch.relu(x - 0.5) + x,
    ],
)
def test_what_stands_between_two_convolutions(operator: Callable[[Tensor], Tensor]) -> None:
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, stride=(2, 1)), nn.Conv2d(4, 2, 2, padding=(1, 0))

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.second(operator(self.first(x)))
            return result

    torch.manual_seed(0)
    x = torch.randn(16, 3, 9, 7) + 0.3
    task = Task(Between().eval(), (x[:4],), holdout=[x], calibration=[x])
    graph = Quantize().apply(capture(task.model, task.example), task)
    (reference,) = integer_reference.run(graph, (x,))
    with torch.no_grad():
        expected = graph(x).numpy()
    assert np.abs(expected - reference).max() <= np.ptp(expected) / 100
    assert np.abs(expected - reference).mean() <= np.ptp(expected) / 2000
