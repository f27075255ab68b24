"""A plan as a JAX function: the interpreter over jax.numpy, with XLA's own convolutions and integer products."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hasten.graph import interpret
from hasten.graph.aten import TABLE
from hasten.graph.aten.neural import convolution_padding, per_dimension
from hasten.graph.plan import Call, Plan

_LETTERS = "DHW"


def function_of(plan: Plan, integer: bool, precision: str = "fp32") -> Callable[..., tuple[Any, ...]]:
    """A traceable function that computes `plan`.

    Args:
        plan: What to compute.
        integer: Whether products of dequantized int8 tensors become s8 x s8 -> s32 products. False: they stay float
            products of dequantized values, as the graph says.
        precision: Of floating-point products. "bf16": operands are rounded to bf16 and summed in fp32, the same on
            every device. "fp32": fp32 throughout, on a TPU by several passes.
    """
    table = integer_table() if integer else FLOAT_TABLE
    interpret.check(plan, table)
    plan = _without_zeros(plan)

    def function(*inputs: Any) -> tuple[Any, ...]:
        with jax.default_matmul_precision("highest"):
            return tuple(_whole(y) for y in interpret.run(plan, inputs, _BF16 if precision == "bf16" else jnp, table))

    return function


def _without_zeros(plan: Plan) -> Plan:
    """The plan with all-zero zero points left out, so that while tracing it is known that a weight is symmetric."""
    zero = {name for name, value in plan.constants.items() if not value.any()}

    def left_out(call: Call) -> Call:
        point = call.arguments.get("zero_points")
        if isinstance(point, dict) and point.get("node") in zero:
            return replace(call, arguments={**call.arguments, "zero_points": None})
        return call

    return replace(plan, calls=tuple(map(left_out, plan.calls)))


class _Bf16Products:
    """jax.numpy with matrix products of operands rounded to bf16 and summed in fp32."""

    def __getattr__(self, name: str) -> Any:
        return getattr(jnp, name)

    def matmul(self, a: Any, b: Any) -> Any:
        """[..., m, k] x [..., k, n] in bf16, result float32."""
        if a.dtype != jnp.float32 or b.dtype != jnp.float32:
            return jnp.matmul(a, b)
        return jnp.matmul(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


_BF16 = _Bf16Products()


def _numbers(rank: int) -> Any:
    spatial = _LETTERS[-rank:]
    return (f"NC{spatial}", f"OI{spatial}", f"NC{spatial}")


def _conv(
    xp: Any,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    rank = weight.ndim - 2
    dilation = per_dimension(dilation, rank)
    kind = jnp.bfloat16 if xp is _BF16 else input.dtype
    result = lax.conv_general_dilated(
        input.astype(kind),
        weight.astype(kind),
        per_dimension(stride, rank),
        convolution_padding(padding, weight.shape[2:], dilation),
        rhs_dilation=dilation,
        dimension_numbers=_numbers(rank),
        feature_group_count=groups,
        preferred_element_type=input.dtype,
    )
    return result if bias is None else result + jnp.reshape(bias, (-1, *[1] * rank))


def _max_pool(
    xp: Any, self: Any, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Any:
    rank = self.ndim - 2
    kernel = per_dimension(kernel_size, rank)
    if ceil_mode or rank != 2:
        return TABLE["aten.max_pool2d"](xp, self, kernel_size, stride, padding, dilation, ceil_mode)
    steps = per_dimension(stride, rank) if stride else kernel
    low = -jnp.inf if jnp.issubdtype(self.dtype, jnp.floating) else jnp.iinfo(self.dtype).min
    pads = [(0, 0), (0, 0), *((p, p) for p in per_dimension(padding, rank))]
    spread = (1, 1, *per_dimension(dilation, rank))
    return lax.reduce_window(
        self, jnp.asarray(low, self.dtype), lax.max, (1, 1, *kernel), (1, 1, *steps), pads, window_dilation=spread
    )


FLOAT_TABLE: dict[str, Callable[..., Any]] = {
    **TABLE,
    **dict.fromkeys(("aten.conv1d", "aten.conv2d", "aten.conv3d"), _conv),
    "aten.max_pool2d": _max_pool,
}


@dataclass(frozen=True)
class Dequantized:
    """(q - zero_point) * scale, not computed yet: a product can take the integers instead.

    Attributes:
        q: int8.
        scale: A number, or one per channel [C].
        zero_point: A number; 0 if `scale` is per channel.
        axis: The channel axis, None per tensor.
    """

    q: Any
    scale: Any
    zero_point: Any
    axis: int | None = None

    @property
    def value(self) -> Any:
        """The float32 tensor."""
        shape = [-1 if d == self.axis else 1 for d in range(self.q.ndim)] if self.axis is not None else []
        scale = jnp.reshape(jnp.asarray(self.scale, jnp.float32), shape)
        return (self.q.astype(jnp.float32) - jnp.float32(self.zero_point)) * scale


def _whole(x: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return [_whole(v) for v in x]
    return x.value if isinstance(x, Dequantized) else x


def integer_table() -> dict[str, Callable[..., Any]]:
    """The float table, except that linear layers and convolutions of two int8 tensors multiply integers."""
    table = {name: _floating(name, function) for name, function in FLOAT_TABLE.items()}
    table["quantized_decomposed.dequantize_per_tensor"] = _dequantize
    table["quantized_decomposed.dequantize_per_channel"] = _dequantize_per_channel
    table["aten.linear"] = _where_it_fits(_integer_linear, table["aten.linear"])
    for name in ("aten.conv1d", "aten.conv2d", "aten.conv3d"):
        table[name] = _where_it_fits(_integer_conv, table[name])
    return table


def _floating(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    if name.startswith("operator."):
        return lambda *arguments: function(*map(_whole, arguments))
    return lambda xp, **arguments: function(xp, **{key: _whole(value) for key, value in arguments.items()})


def _where_it_fits(integer: Callable[..., Any], floating: Callable[..., Any]) -> Callable[..., Any]:
    def function(xp: Any, input: Any, weight: Any, **rest: Any) -> Any:
        if _fits(input, weight):
            return integer(input, weight, **rest)
        return floating(xp, input=input, weight=weight, **rest)

    return function


def _dequantize(xp: Any, input: Any, scale: Any, zero_point: Any, **rest: Any) -> Any:
    if input.dtype == jnp.uint8:
        # Matrix units multiply signed bytes: q - z is (q - 128) - (z - 128).
        return Dequantized((input.astype(jnp.int16) - 128).astype(jnp.int8), scale, zero_point - 128)
    if input.dtype != jnp.int8:
        return TABLE["quantized_decomposed.dequantize_per_tensor"](xp, input, scale, zero_point, **rest)
    return Dequantized(input, scale, zero_point)


def _dequantize_per_channel(xp: Any, input: Any, scales: Any, zero_points: Any, axis: int, **rest: Any) -> Any:
    if input.dtype != jnp.int8 or zero_points is not None:
        return TABLE["quantized_decomposed.dequantize_per_channel"](xp, input, scales, zero_points, axis, **rest)
    return Dequantized(input, scales, 0, axis % input.ndim)


def _fits(input: Any, weight: Any) -> bool:
    """Whether both are int8, and the weight symmetric with one scale or one per output channel."""
    return (
        isinstance(input, Dequantized)
        and isinstance(weight, Dequantized)
        and input.axis is None
        and weight.axis in (None, 0)
        and isinstance(weight.zero_point, int)
        and weight.zero_point == 0
    )


def _rescaled(product: Any, input: Any, weight: Any, bias: Any, trailing: int) -> Any:
    shape = (-1, *[1] * trailing)
    scale = jnp.float32(input.scale) * jnp.reshape(jnp.asarray(weight.scale, jnp.float32), shape)
    result = product.astype(jnp.float32) * scale
    return result if bias is None else result + jnp.reshape(_whole(bias), shape)


def _integer_linear(input: Any, weight: Any, bias: Any = None) -> Any:
    contract = (((input.q.ndim - 1,), (1,)), ((), ()))
    product = lax.dot_general(input.q, weight.q, contract, preferred_element_type=jnp.int32)
    # sum (q - z) w = sum q w - z sum w; the second sum is a constant.
    product = product - jnp.int32(input.zero_point) * jnp.sum(weight.q.astype(jnp.int32), axis=1)
    return _rescaled(product, input, weight, bias, 0)


def _integer_conv(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    rank = weight.q.ndim - 2
    dilation = per_dimension(dilation, rank)
    pads = convolution_padding(padding, weight.q.shape[2:], dilation)
    # Real zero is the integer `zero_point`, so that is what the border holds.
    q = jnp.pad(input.q, [(0, 0), (0, 0), *pads], constant_values=jnp.int8(input.zero_point))
    product = lax.conv_general_dilated(
        q,
        weight.q,
        per_dimension(stride, rank),
        [(0, 0)] * rank,
        rhs_dilation=dilation,
        dimension_numbers=_numbers(rank),
        feature_group_count=groups,
        preferred_element_type=jnp.int32,
    )
    sums = jnp.sum(weight.q.astype(jnp.int32), axis=tuple(range(1, weight.q.ndim)))
    product = product - jnp.int32(input.zero_point) * jnp.reshape(sums, (-1, *[1] * rank))
    return _rescaled(product, input, weight, bias, rank)
