"""A quantized graph as integer arithmetic alone: what integer hardware computes, exact to the last bit.

The graph's `dequantize -> linear -> quantize` becomes an integer product, a 32-bit bias and a fixed-point rescaling,
as in Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", section 2.2. The one difference to the graph is the rescaling factor, a float there and `multiplier /
2**shift` here: a result may be one step away where it fell near a rounding boundary.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hasten.errors import Unsupported
from hasten.graph import unrolled
from hasten.graph.plan import Call, Plan

_Q = "quantized_decomposed."
_SAME = frozenset({"aten.view", "aten.reshape", "aten.flatten", "aten.clone", "aten.contiguous", "aten.dropout"})
_CLAMPS = {"aten.relu": (0.0, math.inf), "aten.relu6": (0.0, 6.0)}


@dataclass(frozen=True)
class Rescale:
    """acc -> clip(floor(acc * multiplier / 2**shift + zero_point + 1/2), low, high).

    Attributes:
        multiplier: [out] int64, positive.
        shift: Common to all outputs.
        zero_point: Of the result.
        low: Smallest result.
        high: Largest result.
    """

    multiplier: np.ndarray
    shift: int
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True)
class Dense:
    """x -> rescale(weight x + bias); without `rescale` the accumulators are the result.

    A convolution is one of these, written out: a row per filter and output pixel, zero where a pixel is out of reach.

    Attributes:
        weight: [out, in] int64 within int8.
        bias: [out] int64 within int32; holds the correction for the input's zero point.
        rescale: To the next layer's integers, or None.
        pixel: [out] int64, the output pixel that a row belongs to; rows of one pixel read the same inputs. All 0 for a
            linear layer.
    """

    weight: np.ndarray
    bias: np.ndarray
    rescale: Rescale | None
    pixel: np.ndarray


@dataclass(frozen=True)
class IntegerNet:
    """Layers of integers between float inputs and float outputs.

    Attributes:
        input_scale: x -> clip(round(x / input_scale) + input_zero_point, input_low, input_high).
        input_zero_point: See `input_scale`.
        input_low: Smallest input integer.
        input_high: Largest input integer.
        layers: In order.
        output_scale: [out] float64; output = (integer - output_zero_point) * output_scale.
        output_zero_point: See `output_scale`.
    """

    input_scale: float
    input_zero_point: int
    input_low: int
    input_high: int
    layers: tuple[Dense, ...]
    output_scale: np.ndarray
    output_zero_point: int

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """Input integers [N, in] int64 of float inputs [N, ...]."""
        inverse = np.float32(1.0 / self.input_scale)
        q = np.round(x.astype(np.float32) * inverse) + self.input_zero_point
        integers: np.ndarray = np.clip(q, self.input_low, self.input_high).astype(np.int64).reshape(len(x), -1)
        return integers

    def run(self, q: np.ndarray) -> np.ndarray:
        """Output integers [N, out] int64 of input integers [N, in]."""
        for layer in self.layers:
            q = q @ layer.weight.T + layer.bias
            if layer.rescale is not None:
                r = layer.rescale
                q = (q * r.multiplier + (r.zero_point << r.shift) + (1 << r.shift >> 1)) >> r.shift
                q = np.clip(q, r.low, r.high)
        return q

    def dequantize(self, q: np.ndarray) -> np.ndarray:
        """Float outputs [N, out] of output integers."""
        values: np.ndarray = ((q - self.output_zero_point) * self.output_scale).astype(np.float32)
        return values


@dataclass(frozen=True)
class _Real:
    """A dequantized tensor: (q - zero_point) * scale, where `q` is what comes out of the layers so far."""

    scale: float
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True)
class _Sum:
    """Accumulators of a linear layer in real units, perhaps clamped since."""

    weight: np.ndarray
    bias: np.ndarray
    scale: np.ndarray
    pixel: np.ndarray
    clamp: tuple[float, float] = (-math.inf, math.inf)


def integer_net(plan: Plan, multiplier_bits: int = 12) -> IntegerNet:
    """The integer layers of a quantized plan, convolutions written out.

    Args:
        plan: Of a graph that `Quantize` made, with one input and one output.
        multiplier_bits: Bits of a rescaling factor; fewer make smaller logic and more results that differ by one step.

    Raises:
        Unsupported: Not quantized throughout, or not a chain of convolutions, linear layers, averages,
            clamps and reshapes.
    """
    if len(plan.inputs) != 1 or len(plan.outputs) != 1:
        raise Unsupported("An integer network must have one input and one output.")
    return _Walk(plan, multiplier_bits).net()


class _Walk:
    """One pass over the plan; `values` holds what each node stands for."""

    def __init__(self, plan: Plan, multiplier_bits: int) -> None:
        self._plan = plan
        self._bits = multiplier_bits
        self._values: dict[str, Any] = {plan.inputs[0].name: "input"}
        self._input: _Real | None = None
        self._layers: list[Dense] = []

    def net(self) -> IntegerNet:
        for call in self._plan.calls:
            self._values[call.name] = self._visit(call)
        last = self._values[self._plan.outputs[0]]
        if isinstance(last, _Sum):
            if last.clamp != (-math.inf, math.inf):
                raise _not_quantized("an activation after the last layer")
            self._layers.append(Dense(last.weight, last.bias, None, last.pixel))
            scale, zero = last.scale, 0
        elif isinstance(last, _Real):
            scale, zero = np.array([last.scale]), last.zero_point
        else:
            raise _not_quantized("the output")
        if self._input is None or not self._layers:
            raise _not_quantized("no layer")
        first = self._input
        return IntegerNet(
            first.scale, first.zero_point, first.low, first.high, tuple(self._layers), scale.astype(np.float64), zero
        )

    def _visit(self, call: Call) -> Any:
        if call.operator == f"{_Q}quantize_per_tensor":
            return self._quantize(call)
        if call.operator == f"{_Q}dequantize_per_tensor":
            value = self._value(call, "input")
            if isinstance(value, _Real):
                return value
        if call.operator == f"{_Q}dequantize_per_channel":
            return call
        if call.operator == "aten.sym_size":
            return None
        if call.operator in _SAME:
            return self._value(call, "self" if "self" in call.arguments else "input")
        if call.operator == "aten.linear":
            return self._linear(call)
        if call.operator == "aten.conv2d":
            return self._convolution(call)
        if call.operator in ("aten.adaptive_avg_pool2d", "aten.avg_pool2d", "aten.mean"):
            return self._average(call)
        if call.operator in (*_CLAMPS, "aten.hardtanh", "aten.clamp", "aten.clamp_min"):
            value = self._value(call, "self")
            if isinstance(value, _Sum):
                low, high = _bounds(call)
                return replace(value, clamp=(max(low, value.clamp[0]), min(high, value.clamp[1])))
        raise _not_quantized(call.operator)

    def _value(self, call: Call, argument: str) -> Any:
        reference = call.arguments[argument]
        return self._values.get(reference["node"]) if isinstance(reference, Mapping) else None

    def _quantize(self, call: Call) -> _Real:
        a = call.arguments
        made = _Real(float(a["scale"]), int(a["zero_point"]), int(a["quant_min"]), int(a["quant_max"]))
        value = self._value(call, "input")
        if value == "input":
            if self._input not in (None, made):
                raise _not_quantized("an input with two scales")
            self._input = made
        elif isinstance(value, _Sum):
            self._layers.append(Dense(value.weight, value.bias, self._rescale(value, made), value.pixel))
        elif value != made:
            raise _not_quantized("a change of scale between layers")
        return made

    def _rescale(self, value: _Sum, made: _Real) -> Rescale:
        factors = value.scale / made.scale
        shift = self._bits - math.ceil(math.log2(factors.max()))
        low, high = (
            made.zero_point + round(bound / made.scale) if math.isfinite(bound) else bound for bound in value.clamp
        )
        return Rescale(
            np.maximum(np.round(factors * 2.0**shift), 1).astype(np.int64),
            shift,
            made.zero_point,
            int(max(low, made.low)),
            int(min(high, made.high)),
        )

    def _linear(self, call: Call) -> _Sum:
        source, weight = self._value(call, "input"), self._value(call, "weight")
        if not isinstance(source, _Real) or not isinstance(weight, Call) or len(call.shape) != 2:
            raise _not_quantized("a linear layer on floats, or on more than [N, features]")
        integers, scale = self._constants(weight)
        return self._sum(call, source, integers.astype(np.int64), scale, np.zeros(len(integers), np.int64))

    def _convolution(self, call: Call) -> _Sum:
        source, weight = self._value(call, "input"), self._value(call, "weight")
        if not isinstance(source, _Real) or not isinstance(weight, Call):
            raise _not_quantized("a convolution on floats")
        integers, scale = self._constants(weight)
        a = call.arguments
        shape = self._shape(call, "input")
        written, pixel = unrolled.convolution(
            integers.astype(np.int64), shape, a["stride"], a["padding"], a["dilation"], a["groups"]
        )
        per_filter = np.broadcast_to(scale.astype(np.float64), len(integers))
        return self._sum(call, source, written, np.repeat(per_filter, len(written) // len(integers)), pixel)

    def _average(self, call: Call) -> _Sum:
        source = self._value(call, "self")
        if not isinstance(source, _Real) or len(self._shape(call, "self")) != 3:
            raise _not_quantized(f"{call.operator} on floats, or on other than images")
        written, count, pixel = unrolled.average(call, self._shape(call, "self"))
        return self._sum(call, source, written, np.full(len(written), 1.0 / count), pixel)

    def _sum(self, call: Call, source: _Real, integers: np.ndarray, scale: np.ndarray, pixel: np.ndarray) -> _Sum:
        """Accumulators of `integers` [out, in] times the source, with the bias and the zero point's correction."""
        scale = np.broadcast_to(scale.astype(np.float64) * source.scale, len(integers))
        offset = -source.zero_point * integers.sum(axis=1)
        if call.arguments.get("bias") is None:
            return _Sum(integers, offset, scale, pixel)
        bias = self._value(call, "bias")
        if isinstance(bias, Call):
            stored = self._constants(bias)[0].astype(np.int64)
            return _Sum(integers, offset + np.repeat(stored, len(integers) // len(stored)), scale, pixel)
        real = self._plan.constants[call.arguments["bias"]["node"]]
        real = np.repeat(real, len(integers) // len(real))
        return _Sum(integers, offset + np.round(real / scale).astype(np.int64), scale, pixel)

    def _shape(self, call: Call, argument: str) -> tuple[int, ...]:
        """Shape of a value without the batch."""
        name = call.arguments[argument]["node"]
        shapes = {x.name: x.shape for x in self._plan.inputs} | {c.name: c.shape for c in self._plan.calls}
        found = shapes[name][1:]
        if any(size is None for size in found):
            raise _not_quantized("a shape that is not known")
        return tuple(int(size) for size in found if size is not None)

    def _constants(self, call: Call) -> tuple[np.ndarray, np.ndarray]:
        """Integers and scales of a dequantized weight; its zero points must be zero, its channels the first axis."""
        zero = call.arguments.get("zero_points")
        constants = self._plan.constants
        if call.arguments["axis"] != 0 or (zero is not None and constants[zero["node"]].any()):
            raise _not_quantized("a weight with zero points")
        return constants[call.arguments["input"]["node"]], constants[call.arguments["scales"]["node"]]


def _bounds(call: Call) -> tuple[float, float]:
    if call.operator in _CLAMPS:
        return _CLAMPS[call.operator]
    low = call.arguments.get("min_val", call.arguments.get("min"))
    high = call.arguments.get("max_val", call.arguments.get("max"))
    return (-math.inf if low is None else float(low), math.inf if high is None else float(high))


def _not_quantized(what: str) -> Unsupported:
    return Unsupported(
        "An integer network must be convolutions, linear layers, averages, clamps and reshapes, all quantized, but "
        f"has {what}. Apply Quantize first; residual sums, maxima and attention are not made into logic."
    )
