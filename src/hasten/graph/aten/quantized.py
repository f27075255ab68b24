"""Quantize and dequantize, as `torch.ops.quantized_decomposed` and `torch.ops.torchao` define them.

q = clip(round(x / scale) + zero_point, quant_min, quant_max); rounding is half to even.
"""

from typing import Any

from hasten.graph.aten.table import Function, entering

TABLE: dict[str, Function] = {}


@entering(TABLE, "quantized_decomposed.quantize_per_tensor")
def _quantize(
    xp: Any, input: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int, dtype: Any, **_: Any
) -> Any:
    # torch multiplies by the float32 reciprocal; dividing would round a value halfway between two steps otherwise.
    inverse = xp.asarray(1.0 / scale, dtype=xp.float32)
    return xp.clip(xp.round(input * inverse) + zero_point, quant_min, quant_max).astype(dtype)


@entering(TABLE, "quantized_decomposed.dequantize_per_tensor")
def _dequantize(xp: Any, input: Any, scale: Any, zero_point: Any, **_: Any) -> Any:
    return (input.astype(xp.float32) - xp.asarray(zero_point, xp.float32)) * xp.asarray(scale, xp.float32)


@entering(TABLE, "quantized_decomposed.quantize_per_channel")
def _quantize_per_channel(
    xp: Any, input: Any, scales: Any, zero_points: Any, axis: int, quant_min: int, quant_max: int, dtype: Any, **_: Any
) -> Any:
    shape = [-1 if d == axis % input.ndim else 1 for d in range(input.ndim)]
    scaled = xp.round(input * (1.0 / xp.reshape(scales, shape)).astype(xp.float32))
    shifted = scaled if zero_points is None else scaled + xp.reshape(zero_points, shape)
    return xp.clip(shifted, quant_min, quant_max).astype(dtype)


@entering(TABLE, "quantized_decomposed.dequantize_per_channel")
def _dequantize_per_channel(xp: Any, input: Any, scales: Any, zero_points: Any, axis: int, **_: Any) -> Any:
    shape = [-1 if d == axis % input.ndim else 1 for d in range(input.ndim)]
    x = input.astype(xp.float32)
    x = x if zero_points is None else x - xp.reshape(zero_points, shape).astype(xp.float32)
    return x * xp.reshape(scales, shape).astype(xp.float32)
