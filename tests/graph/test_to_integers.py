"""Plans written by hand become integer layers: every clamp, window, bias and scale, and what is refused."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from hasten.errors import Unsupported
from hasten.graph.integer import Convolution, IntegerNet
from hasten.graph.plan import Call, Plan, Value
from hasten.graph.to_integers import integer_net

RNG = np.random.default_rng(0)
Q = "quantized_decomposed."


class Written:
    """A plan under construction: every call is named by its number."""

    def __init__(self, *shape: int) -> None:
        self.inputs = (Value("x", "float32", (None, *shape)),)
        self.calls: list[Call] = []
        self.constants: dict[str, np.ndarray] = {}

    def call(self, operator: str, shape: tuple[int, ...] = (), /, **arguments: Any) -> str:
        name = f"n{len(self.calls)}"
        self.calls.append(Call(name, operator, arguments, "float32", (None, *shape)))
        return name

    def constant(self, value: Any) -> Mapping[str, str]:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return {"node": name}

    def rounded(
        self, of: str, scale: float, zero: int, shape: tuple[int, ...], low: int = -128, high: int = 127
    ) -> str:
        """Quantized and dequantized again."""
        ends = {"scale": scale, "zero_point": zero, "quant_min": low, "quant_max": high, "dtype": {"dtype": "int8"}}
        q = self.call(f"{Q}quantize_per_tensor", shape, input={"node": of}, **ends)
        return self.call(f"{Q}dequantize_per_tensor", shape, input={"node": q}, **ends)

    def weight(self, integers: np.ndarray, scales: Any, axis: int = 0, zeros: Any = None) -> Mapping[str, str]:
        name = self.call(
            f"{Q}dequantize_per_channel",
            integers.shape[1:],
            input=self.constant(integers),
            scales=self.constant(scales),
            zero_points=None if zeros is None else self.constant(zeros),
            axis=axis,
        )
        return {"node": name}

    def net(self, output: str, bits: int = 16) -> IntegerNet:
        return integer_net(Plan(self.inputs, tuple(self.calls), (output,), self.constants), bits)


WEIGHT = RNG.integers(-127, 128, (4, 6)).astype(np.int8)
SCALES, BIAS = np.array([0.01, 0.02, 0.005, 0.03]), np.array([0.7, -0.4, 0.0, 2.0], np.float32)
X = RNG.normal(0, 1.5, (64, 6)).astype(np.float32)
IN_SCALE, IN_ZERO = 0.04, -7


def _seen(x: np.ndarray) -> np.ndarray:
    """The numbers that a layer's inputs are rounded to."""
    return (np.clip(np.round(x / np.float32(IN_SCALE)) + IN_ZERO, -128, 127) - IN_ZERO) * IN_SCALE


def _out(net: IntegerNet, x: np.ndarray) -> np.ndarray:
    return net.dequantize(net.run(net.quantize(x)))


def _linear(clamps: list[tuple[str, dict[str, Any]]], bias: bool = True, **weight: Any) -> tuple[Written, str]:
    made = Written(6)
    x = made.rounded("x", IN_SCALE, IN_ZERO, (6,))
    layer = {"weight": made.weight(WEIGHT, SCALES, **weight), "bias": made.constant(BIAS) if bias else None}
    last = made.call("aten.linear", (4,), input={"node": x}, **layer)
    for operator, ends in clamps:
        last = made.call(operator, (4,), self={"node": last}, **ends)
    return made, last


CLAMPS: dict[str, tuple[list[tuple[str, dict[str, Any]]], tuple[float, float]]] = {
    "none": ([], (-math.inf, math.inf)),
    "relu": ([("aten.relu", {})], (0, math.inf)),
    "relu6": ([("aten.relu6", {})], (0, 6)),
    "hardtanh": ([("aten.hardtanh", {"min_val": -1.5, "max_val": 2.5})], (-1.5, 2.5)),
    "clamp": ([("aten.clamp", {"min": -0.5, "max": 1.25})], (-0.5, 1.25)),
    "clamp from below": ([("aten.clamp", {"min": -0.5, "max": None})], (-0.5, math.inf)),
    "clamp from above": ([("aten.clamp", {"min": None, "max": 1.25})], (-math.inf, 1.25)),
    "clamp_min": ([("aten.clamp_min", {"min": 0.75})], (0.75, math.inf)),
    "two clamps": ([("aten.relu", {}), ("aten.clamp", {"min": -3.0, "max": 4.0})], (0, 4)),
    "two clamps the other way": ([("aten.clamp", {"min": 1.0, "max": 2.0}), ("aten.relu6", {})], (1, 2)),
}


@pytest.mark.parametrize("name", CLAMPS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_and_its_clamps(name: str, bias: bool) -> None:
    clamps, (low, high) = CLAMPS[name]
    made, last = _linear(clamps, bias)
    scale, zero = 0.125, 3
    net = made.net(made.rounded(last, scale, zero, (4,)))
    sums = _seen(X) @ (WEIGHT * SCALES[:, None]).T + (BIAS if bias else 0)
    assert sums.max() > 8
    assert sums.min() < -8
    wanted = np.clip(np.clip(sums, low, high), (-128 - zero) * scale, (127 - zero) * scale)
    assert np.abs(_out(net, X) - wanted).max() < 0.51 * scale + 0.01
    assert (net.input_scale, net.input_zero_point, net.input_low, net.input_high) == (IN_SCALE, IN_ZERO, -128, 127)
    assert (net.output_scale.tolist(), net.output_zero_point) == ([scale], zero)


def test_sums_of_the_last_layer_are_the_output() -> None:
    made, last = _linear([])
    net = made.net(last)
    assert net.layers[0].rescale is None
    np.testing.assert_allclose(net.output_scale, SCALES * IN_SCALE)
    exact = _seen(X) @ (WEIGHT * SCALES[:, None]).T + BIAS
    assert np.abs(_out(net, X) - exact).max() < 0.001


def test_a_filter_with_next_to_no_weight_gets_larger_units() -> None:
    """A factor below 2**(bits / 2) after the common shift is doubled until it is not, and its integers are halved."""
    made = Written(6)
    x = made.rounded("x", 0.25, -7, (6,))
    scales = np.array([2.0**-2, 2.0**-9, 2.0**-21, 2.0**-3])
    layer = {"weight": made.weight(WEIGHT, scales), "bias": made.constant(np.array([0.75, -0.5, 0.5, 2], np.float32))}
    last = made.call("aten.linear", (4,), input={"node": x}, **layer)
    net = made.net(made.rounded(last, 0.125, 3, (4,)), bits=12)
    (found,) = net.layers
    assert found.rescale is not None
    # The factors are 2**-1, 2**-8, 2**-20 and 2**-2; a shift by 13 makes the largest one 12 bits.
    assert found.rescale.shift == 13
    assert found.rescale.multiplier.tolist() == [2**12, 2**6, 2**6, 2**11]
    weight = np.round(WEIGHT / np.array([1, 2, 2**13, 1])[:, None])
    np.testing.assert_array_equal(found.weight, weight)
    biases = np.array([0.75 * 2**4, -0.5 * 2**10, 0.5 * 2**10, 2 * 2**5])
    np.testing.assert_array_equal(found.bias, biases + 7 * weight.sum(1))
    assert _out(net, X)[:, 2].tolist() == [0.5] * 64


def test_a_bias_that_is_stored_as_integers() -> None:
    made = Written(6)
    x = made.rounded("x", IN_SCALE, IN_ZERO, (6,))
    bias = made.weight(np.array([100, -200, 0, 7]), SCALES * IN_SCALE)
    last = made.call("aten.linear", (4,), input={"node": x}, weight=made.weight(WEIGHT, SCALES), bias=bias)
    sums = _seen(X) @ (WEIGHT * SCALES[:, None]).T + np.array([100, -200, 0, 7]) * SCALES * IN_SCALE
    assert np.abs(_out(made.net(last), X) - sums).max() < 1e-5


def test_one_scale_for_all_filters_and_values_that_only_change_shape() -> None:
    made = Written(2, 3)
    x = made.rounded("x", IN_SCALE, IN_ZERO, (2, 3))
    size = made.call("aten.sym_size", (), self={"node": "x"}, dim=0)
    flat = made.call("aten.view", (6,), self={"node": x}, size=[{"node": size}, 6])
    flat = made.call("aten.dropout", (6,), input={"node": flat}, p=0.5, train=False)
    again = made.rounded(flat, IN_SCALE, IN_ZERO, (6,))
    last = made.call(
        "aten.linear", (4,), input={"node": again}, weight=made.weight(WEIGHT, np.array([0.01])), bias=None
    )
    assert np.abs(_out(made.net(last), X.reshape(-1, 2, 3)) - _seen(X) @ WEIGHT.T * 0.01).max() < 1e-5


IMAGES = RNG.normal(0, 1.5, (8, 4, 6, 12)).astype(np.float32)
AVERAGES: dict[str, tuple[str, dict[str, Any], tuple[int, int], tuple[int, int]]] = {
    # operator, arguments, window, stride
    "mean": ("aten.mean", {"dim": [2, 3]}, (6, 12), (6, 12)),
    "mean from the end": ("aten.mean", {"dim": [-1, -2]}, (6, 12), (6, 12)),
    "adaptive": ("aten.adaptive_avg_pool2d", {"output_size": [2, 3]}, (3, 4), (3, 4)),
    "adaptive to one": ("aten.adaptive_avg_pool2d", {"output_size": [1, 1]}, (6, 12), (6, 12)),
    "windows": ("aten.avg_pool2d", {"kernel_size": [2, 3]}, (2, 3), (2, 3)),
    "one number": ("aten.avg_pool2d", {"kernel_size": [3], "stride": []}, (3, 3), (3, 3)),
    "overlapping": ("aten.avg_pool2d", {"kernel_size": [2, 3], "stride": [1, 2], "padding": [0]}, (2, 3), (1, 2)),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_are_convolutions_with_ones(name: str) -> None:
    operator, arguments, (high, wide), (down, right) = AVERAGES[name]
    made = Written(4, 6, 12)
    x = made.rounded("x", IN_SCALE, IN_ZERO, (4, 6, 12))
    net = made.net(made.call(operator, (), self={"node": x}, **arguments))
    windows = np.lib.stride_tricks.sliding_window_view(_seen(IMAGES), (high, wide), (2, 3))[:, :, ::down, ::right]
    wanted = windows.mean((-1, -2)).reshape(8, -1)
    np.testing.assert_allclose(_out(net, IMAGES), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        ("aten.mean", {"dim": [1, 2]}),
        ("aten.mean", {"dim": [3]}),
        ("aten.mean", {"dim": None}),
        ("aten.adaptive_avg_pool2d", {"output_size": [4, 3]}),
        ("aten.adaptive_avg_pool2d", {"output_size": [2, 5]}),
        ("aten.avg_pool2d", {"kernel_size": [2], "padding": [0, 1]}),
        ("aten.avg_pool2d", {"kernel_size": [2], "ceil_mode": True}),
        ("aten.avg_pool2d", {"kernel_size": [2], "divisor_override": 3}),
    ],
)
def test_averages_over_other_windows_are_refused(operator: str, arguments: dict[str, Any]) -> None:
    made = Written(4, 6, 12)
    x = made.rounded("x", IN_SCALE, IN_ZERO, (4, 6, 12))
    last = made.call(operator, (), self={"node": x}, **arguments)
    with pytest.raises(Unsupported, match="equal windows"):
        made.net(last)


@pytest.mark.parametrize(("rounded", "shape"), [(False, (4, 6, 12)), (True, (6, 12))])
def test_averages_of_floats_or_of_no_images_are_refused(rounded: bool, shape: tuple[int, ...]) -> None:
    made = Written(*shape)
    x = made.rounded("x", IN_SCALE, IN_ZERO, shape) if rounded else "x"
    last = made.call("aten.mean", (), self={"node": x}, dim=[2, 3])
    with pytest.raises(Unsupported, match="on floats, or on other than images"):
        made.net(last)


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), [([2, 1], [1, 0], [1, 3], 2), ([1], [2], [2], 1)])
def test_a_convolution_pads_with_the_zero_point(
    stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> None:
    import torch

    weight = RNG.integers(-127, 128, (4, 4 // groups, 3, 2)).astype(np.int8)
    made = Written(4, 6, 12)
    x = made.rounded("x", IN_SCALE, IN_ZERO, (4, 6, 12))
    window: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    layer = {"weight": made.weight(weight, SCALES), "bias": made.constant(BIAS)}
    net = made.net(made.call("aten.conv2d", (), input={"node": x}, **layer, **window))
    real = torch.from_numpy(weight * SCALES[:, None, None, None])
    wanted = torch.conv2d(
        torch.from_numpy(_seen(IMAGES)).double(), real, torch.from_numpy(BIAS).double(), **window
    ).flatten(1)
    assert np.abs(_out(net, IMAGES) - wanted.numpy()).max() < 0.001
    (made_layer,) = net.layers
    assert isinstance(made_layer, Convolution)
    assert made_layer.products == np.count_nonzero(weight) * wanted.shape[1] // 4


def _two(inputs: int, outputs: int) -> Plan:
    made, last = _linear([])
    more = tuple(Value(f"y{i}", "float32", (None, 6)) for i in range(inputs - 1))
    return Plan((*made.inputs, *more), tuple(made.calls), (last,) * outputs, made.constants)


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 1), (1, 2), (2, 2)])
def test_several_inputs_or_outputs_are_refused(inputs: int, outputs: int) -> None:
    integer_net(_two(1, 1))
    with pytest.raises(Unsupported, match="one input and one output"):
        integer_net(_two(inputs, outputs))


def test_what_is_not_a_chain_of_integer_layers_is_refused() -> None:
    made, last = _linear([("aten.relu", {})])
    with pytest.raises(Unsupported, match="activation after the last layer"):
        made.net(last)

    made = Written(6)
    last = made.rounded("x", 0.1, 0, (6,))
    with pytest.raises(Unsupported, match="no layer"):
        made.net(last)
    with pytest.raises(Unsupported, match="change of scale"):
        made.net(made.rounded(last, 0.2, 0, (6,)))

    made = Written(6)
    made.rounded("x", 0.1, 0, (6,))
    made.rounded("x", 0.1, 1, (6,))
    with pytest.raises(Unsupported, match="two scales"):
        made.net("n1")

    made = Written(6)
    last = made.call("aten.relu", (6,), self={"node": "x"})
    with pytest.raises(Unsupported, match=r"aten\.relu"):
        made.net(last)

    made = Written(6)
    made.rounded("x", 0.1, 0, (6,))
    with pytest.raises(Unsupported, match="the output"):
        made.net("x")


@pytest.mark.parametrize("weight", [{"axis": 1}, {"zeros": [0, 1, 0, 0]}])
def test_weights_with_zero_points_or_scales_of_inputs_are_refused(weight: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match="weight with zero points"):
        _linear([], **weight)[0].net("n3")
    made, last = _linear([], zeros=[0, 0, 0, 0])
    made.net(last)


def test_layers_on_other_shapes_or_on_floats_are_refused() -> None:
    made = Written(5, 6)
    x = made.rounded("x", IN_SCALE, IN_ZERO, (5, 6))
    last = made.call("aten.linear", (5, 4), input={"node": x}, weight=made.weight(WEIGHT, SCALES), bias=None)
    with pytest.raises(Unsupported, match="more than"):
        made.net(last)

    made = Written(6)
    last = made.call("aten.linear", (4,), input={"node": "x"}, weight=made.weight(WEIGHT, SCALES), bias=None)
    with pytest.raises(Unsupported, match="a linear layer on floats"):
        made.net(last)

    made = Written(6)
    x = made.rounded("x", IN_SCALE, IN_ZERO, (6,))
    last = made.call("aten.linear", (4,), input={"node": x}, weight=made.constant(WEIGHT), bias=None)
    with pytest.raises(Unsupported, match="a linear layer on floats"):
        made.net(last)

    made = Written(6)
    x = made.rounded("x", IN_SCALE, IN_ZERO, (6,))
    with pytest.raises(Unsupported, match="on other than images"):
        made.net(made.call("aten.mean", (), self={"node": x}, dim=[2, 3]))
