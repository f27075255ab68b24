"""Rounding against the data and bias correction: never worse for the output, and exact where they must be."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hasten
from hasten.quantization.learned_rounding import learn_rounding
from hasten.quantization.rounding import input_moments, nearest, round_weights


def _error(weight: Tensor, integers: Tensor, scale: Tensor, covariance: Tensor) -> float:
    """Expected squared error of the centred output, summed over outputs."""
    e = integers * scale - weight
    return float((e @ covariance * e).sum())


def _case(seed: int, groups: int, outputs: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups, outputs, size, generator=generator)
    mixing = torch.randn(groups, size, size, generator=generator)
    x = mixing @ torch.randn(groups, size, 200, generator=generator)
    x = x - x.mean(2, keepdim=True)
    return weight, weight.abs().amax(2, keepdim=True) / 127, x @ x.mT / 200


def test_independent_inputs_are_rounded_to_nearest() -> None:
    weight, scale, _ = _case(0, 2, 3, 8)
    rounded = round_weights(weight, scale, torch.eye(8).expand(2, 8, 8), -127, 127)
    torch.testing.assert_close(rounded, torch.round(weight / scale))


@given(st.integers(0, 1000), st.integers(1, 3), st.integers(1, 5), st.integers(2, 24))
@settings(deadline=None, max_examples=30)
def test_correlated_inputs_lose_no_more_than_rounding_to_nearest(
    seed: int, groups: int, outputs: int, size: int
) -> None:
    weight, scale, covariance = _case(seed, groups, outputs, size)
    rounded = round_weights(weight, scale, covariance, -127, 127)
    nearest = torch.round(weight / scale)
    assert torch.equal(rounded, rounded.round())
    assert rounded.abs().max() <= 127
    assert _error(weight, rounded, scale, covariance) <= (1 + 1e-4) * _error(weight, nearest, scale, covariance)


@given(st.integers(0, 1000), st.integers(1, 2), st.integers(1, 4), st.integers(2, 12), st.sampled_from([1, 7]))
@settings(deadline=None, max_examples=5)
def test_learned_rounding_moves_no_weight_by_more_than_a_step_and_loses_no_more_than_greedy(
    seed: int, groups: int, outputs: int, size: int, top: int
) -> None:
    weight, _, covariance = _case(seed, groups, outputs, size)
    scale = weight.abs().amax(2, keepdim=True) / top
    learned = learn_rounding(weight, scale, covariance, -top, top)
    greedy = round_weights(weight, scale, covariance, -top, top)
    assert torch.equal(learned, learned.round())
    assert learned.abs().max() <= top
    assert _error(weight, learned, scale, covariance) <= (1 + 1e-4) * _error(weight, greedy, scale, covariance)


def test_on_average_learning_beats_greedy_rounding_at_few_bits() -> None:
    gains = []
    for seed in range(5):
        weight, _, covariance = _case(seed, 1, 8, 24)
        scale = weight.abs().amax(2, keepdim=True) / 3
        learned, greedy = (rule(weight, scale, covariance, -3, 3) for rule in (learn_rounding, round_weights))
        gains.append(_error(weight, learned, scale, covariance) / _error(weight, greedy, scale, covariance))
    assert sum(gains) / len(gains) < 0.97


def test_on_average_correlated_inputs_lose_much_less() -> None:
    gains = []
    for seed in range(20):
        weight, scale, covariance = _case(seed, 1, 8, 32)
        rounded = round_weights(weight, scale, covariance, -127, 127)
        nearest = torch.round(weight / scale)
        gains.append(_error(weight, rounded, scale, covariance) / _error(weight, nearest, scale, covariance))
    assert sum(gains) / len(gains) < 0.7


@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 1, 1), (2, 0, 1), (1, 1, 4), (2, 1, 2)])
def test_the_covariance_predicts_the_variance_of_a_convolution_s_output(stride: int, padding: int, groups: int) -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(4, 8, 3, stride, padding, groups=groups, bias=False)
    x = torch.randn(3, 4, 9, 9).cumsum(3)
    graph = hasten.capture(net, (x,))
    layer = next(n for n in graph.graph.nodes if n.target == torch.ops.aten.conv2d.default)
    weight = net.weight.detach()
    covariance = input_moments(layer, x, weight, centred=True)
    w = weight.reshape(groups, 8 // groups, -1)
    predicted = (w @ covariance * w).sum(2).flatten()
    found = F.conv2d(x, weight, None, stride, padding, 1, groups).transpose(0, 1).flatten(1).var(1, correction=0)
    torch.testing.assert_close(predicted, found, rtol=1e-4, atol=1e-4)


class Clamped(nn.Module):
    """Depthwise-separable blocks with all-positive activations: rounding errors add up to a shift."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU6()]
        for _ in range(3):
            layers += [nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU6(), nn.Conv2d(16, 16, 1), nn.ReLU6()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def test_both_bring_the_output_closer_and_take_the_shift_away() -> None:
    torch.manual_seed(0)
    x = torch.rand(64, 3, 12, 12)
    task = hasten.Task(Clamped().eval(), (x[:4],), [(x, None)])
    graph = hasten.capture(task.model, task.example)
    with torch.no_grad():
        want = graph(x)

        def error(**options: Any) -> Tensor:
            return hasten.Quantize(**options).apply(graph, task)(x) - want

        plain = error(rounding="nearest", bias_correction=False)
        corrected = error(rounding="nearest")
        both = error()
    assert corrected.mean(0).abs().max() < 0.5 * plain.mean(0).abs().max()
    assert both.square().mean() < 0.5 * plain.square().mean()


def test_refining_needs_no_more_than_what_calibration_yields() -> None:
    torch.manual_seed(0)
    x = torch.rand(3, 3, 12, 12)
    task = hasten.Task(Clamped().eval(), (x[:2],), [(x, None)])
    graph = hasten.capture(task.model, task.example)
    one = dataclasses.replace(task, calibration=[x[:1]])
    assert torch.isfinite(hasten.Quantize().apply(graph, one)(x)).all()


def test_nearest_is_the_nearest_integer_of_each_channel_s_grid() -> None:
    weight = torch.tensor([[[0.26, -0.9, 9.0]], [[0.26, -0.9, 9.0]]])
    scale = torch.tensor([[[0.5]], [[0.1]]])
    found = nearest(weight, scale, torch.eye(3), -8, 7)
    assert found.tolist() == [[[1, -2, 7]], [[3, -8, 7]]]
