"""From a quantized graph to `hasten.graph.integer`: `dequantize -> layer -> quantize` becomes one integer layer.

The one difference to the graph is the rescaling factor, a float there and `multiplier / 2**shift` here: a result may
be one step away where it fell near a rounding boundary. Filters that do next to nothing are kept in larger units.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hasten.errors import Unsupported
from hasten.graph.integer import Convolution, Dense, IntegerNet, Rescale
from hasten.graph.plan import Call, Plan

_Q = "quantized_decomposed."
_SAME = frozenset({"aten.view", "aten.reshape", "aten.flatten", "aten.clone", "aten.contiguous", "aten.dropout"})
_CLAMPS = {"aten.relu": (0.0, math.inf), "aten.relu6": (0.0, 6.0)}
_AVERAGES = ("aten.adaptive_avg_pool2d", "aten.avg_pool2d", "aten.mean")


@dataclass(frozen=True)
class _Real:
    """A dequantized tensor: (q - zero_point) * scale, where `q` is what comes out of the layers so far."""

    scale: float
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True)
class _Sum:
    """Accumulators of a layer in real units, perhaps clamped since; `scale` has one number per filter.

    `zero_point` is that of the layer's input, which its bias makes up for.
    """

    layer: Dense | Convolution
    scale: np.ndarray
    zero_point: int
    clamp: tuple[float, float] = (-math.inf, math.inf)


def integer_net(plan: Plan, multiplier_bits: int = 12) -> IntegerNet:
    """The integer layers of a quantized plan.

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
        self._layers: list[Dense | Convolution] = []

    def net(self) -> IntegerNet:
        for call in self._plan.calls:
            self._values[call.name] = self._visit(call)
        last = self._values[self._plan.outputs[0]]
        if isinstance(last, _Sum):
            if last.clamp != (-math.inf, math.inf):
                raise _not_quantized("an activation after the last layer")
            self._layers.append(last.layer)
            scale, zero = np.repeat(last.scale, math.prod(_out_size(last.layer))), 0
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
        if call.operator in _AVERAGES:
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
            value = self._coarser(value, made)
            self._layers.append(replace(value.layer, rescale=self._rescale(value, made)))
        elif value != made:
            raise _not_quantized("a change of scale between layers")
        return made

    def _shift(self, factors: np.ndarray) -> int:
        return self._bits - math.ceil(math.log2(factors.max()))

    def _coarser(self, value: _Sum, made: _Real) -> _Sum:
        """The same with filters whose weights are next to nothing in larger units.

        Quantized, such a filter has large integers and a tiny factor, which the common shift would round away.
        """
        factors, layer = value.scale / made.scale, value.layer
        least = 2.0 ** (self._bits // 2)
        units = np.exp2(np.ceil(np.log2(least / (factors * 2.0 ** self._shift(factors))))).clip(1)
        inputs = tuple(range(1, layer.weight.ndim))
        weight = np.round(layer.weight / np.expand_dims(units, inputs)).astype(np.int64)
        bias = np.round((layer.bias + value.zero_point * layer.weight.sum(inputs)) / units).astype(np.int64)
        layer = replace(layer, weight=weight, bias=bias - value.zero_point * weight.sum(inputs))
        return replace(value, layer=layer, scale=value.scale * units)

    def _rescale(self, value: _Sum, made: _Real) -> Rescale:
        factors = value.scale / made.scale
        shift = self._shift(factors)
        low, high = (
            made.zero_point + round(bound / made.scale) if math.isfinite(bound) else bound for bound in value.clamp
        )
        return Rescale(
            np.round(factors * 2.0**shift).astype(np.int64),
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
        scale = np.broadcast_to(scale.astype(np.float64) * source.scale, len(integers))
        wide = integers.astype(np.int64)
        bias = self._bias(call, scale) - source.zero_point * wide.sum(axis=1)
        return _Sum(Dense(wide, bias, None, np.zeros(len(wide), np.int64)), scale, source.zero_point)

    def _convolution(self, call: Call) -> _Sum:
        source, weight = self._value(call, "input"), self._value(call, "weight")
        if not isinstance(source, _Real) or not isinstance(weight, Call):
            raise _not_quantized("a convolution on floats")
        integers, scale = self._constants(weight)
        scale = np.broadcast_to(scale.astype(np.float64) * source.scale, len(integers))
        wide, a = integers.astype(np.int64), call.arguments
        bias = self._bias(call, scale) - source.zero_point * wide.sum(axis=(1, 2, 3))
        pairs = (_pair(a["stride"]), _pair(a["padding"]), _pair(a["dilation"]))
        shape = self._image(call, "input")
        layer = Convolution(wide, bias, None, shape, *pairs, int(a["groups"]), source.zero_point)
        return _Sum(layer, scale, source.zero_point)

    def _average(self, call: Call) -> _Sum:
        source = self._value(call, "self")
        if not isinstance(source, _Real) or len(self._shape(call, "self")) != 3:
            raise _not_quantized(f"{call.operator} on floats, or on other than images")
        shape = self._image(call, "self")
        high, wide, stride = _window(call, *shape[1:])
        if not high or not wide:
            raise Unsupported(f"An average must be over equal windows of height and width, but {call.operator} is not.")
        ones = np.ones((shape[0], 1, high, wide), np.int64)
        bias = np.full(shape[0], -source.zero_point * high * wide)
        layer = Convolution(ones, bias, None, shape, stride, (0, 0), (1, 1), shape[0], source.zero_point)
        return _Sum(layer, np.full(shape[0], source.scale / (high * wide)), source.zero_point)

    def _bias(self, call: Call, scale: np.ndarray) -> np.ndarray:
        """[filters] int64 in units of `scale`."""
        if call.arguments.get("bias") is None:
            return np.zeros(len(scale), np.int64)
        bias = self._value(call, "bias")
        if isinstance(bias, Call):
            return self._constants(bias)[0].astype(np.int64)
        real = self._plan.constants[call.arguments["bias"]["node"]]
        rounded: np.ndarray = np.round(real / scale).astype(np.int64)
        return rounded

    def _image(self, call: Call, argument: str) -> tuple[int, int, int]:
        """Channels, height and width of a value."""
        shape = self._shape(call, argument)
        if len(shape) != 3:
            raise _not_quantized(f"{call.operator} on other than images")
        return shape[0], shape[1], shape[2]

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


def _pair(values: Sequence[int]) -> tuple[int, int]:
    high, wide = tuple(values) * (2 // len(values))
    return high, wide


def _out_size(layer: Dense | Convolution) -> tuple[int, int]:
    return layer.out_size if isinstance(layer, Convolution) else (1, 1)


def _window(call: Call, height: int, width: int) -> tuple[int, int, tuple[int, int]]:
    """Height, width and stride of the windows of an average; zeros if they are not equal."""
    a = call.arguments
    if call.operator == "aten.mean":
        fits = sorted(d % 4 for d in a.get("dim") or ()) == [2, 3]
        return (height, width, (1, 1)) if fits else (0, 0, (1, 1))
    if call.operator == "aten.adaptive_avg_pool2d":
        high, wide = a["output_size"]
        fits = height % high == 0 and width % wide == 0
        return (height // high, width // wide, (height // high, width // wide)) if fits else (0, 0, (1, 1))
    high, wide = _pair(a["kernel_size"])
    stride = _pair(a.get("stride") or a["kernel_size"])
    if any(a.get("padding") or ()) or a.get("ceil_mode") or a.get("divisor_override"):
        return 0, 0, (1, 1)
    return high, wide, stride


def _not_quantized(what: str) -> Unsupported:
    return Unsupported(
        "An integer network must be convolutions, linear layers, averages, clamps and reshapes, all quantized, but "
        f"has {what}. Apply Quantize first; residual sums, maxima and attention are not made into logic."
    )
