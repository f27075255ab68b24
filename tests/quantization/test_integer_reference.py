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
