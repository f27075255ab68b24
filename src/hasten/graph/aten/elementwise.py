"""Arithmetic, comparisons, activations and reductions."""

import importlib
import math
import operator
from typing import Any

from hasten.graph.aten.table import Function, entering

TABLE: dict[str, Function] = {
    f"operator.{f.__name__}": f
    for f in (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg, operator.getitem)
}
TABLE["operator.truediv"] = operator.truediv


def special(xp: Any) -> Any:
    """The namespace of special functions that belongs to `xp`."""
    return importlib.import_module("jax.scipy.special" if xp.__name__.startswith("jax") else "scipy.special")


def is_floating(xp: Any, x: Any) -> bool:
    """Whether `x` is an array of floating-point numbers."""
    return hasattr(x, "dtype") and bool(xp.issubdtype(x.dtype, xp.floating))


def as_float(xp: Any, x: Any) -> Any:
    """An integer or boolean array as float32, as torch promotes it; anything else as it is."""
    return x.astype(xp.float32) if hasattr(x, "dtype") and not is_floating(xp, x) else x


def promote(xp: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Operands in torch's promotion: floats win over integers of any width, so int64 + float32 is float32."""
    if isinstance(b, float):
        return as_float(xp, a), b
    if isinstance(a, float):
        return a, as_float(xp, b)
    if hasattr(a, "dtype") and hasattr(b, "dtype"):
        if is_floating(xp, a) and not is_floating(xp, b):
            return a, b.astype(a.dtype)
        if is_floating(xp, b) and not is_floating(xp, a):
            return a.astype(b.dtype), b
        same_kind = (a.dtype == bool) == (b.dtype == bool)
        if a.dtype != b.dtype and same_kind and bool(a.ndim) != bool(b.ndim):
            # A tensor without dimensions does not widen the other one, but makes truth values numbers.
            return (a, b.astype(a.dtype)) if a.ndim else (a.astype(b.dtype), b)
    if isinstance(b, int) and not isinstance(b, bool) and hasattr(a, "dtype") and a.dtype == bool:
        return a.astype(xp.int64), b
    return a, b


@entering(TABLE, "aten.add")
def _add(xp: Any, self: Any, other: Any, alpha: Any = 1) -> Any:
    a, b = promote(xp, self, other)
    return a + (b if alpha == 1 else b * alpha)


@entering(TABLE, "aten.sub")
def _sub(xp: Any, self: Any, other: Any, alpha: Any = 1) -> Any:
    a, b = promote(xp, self, other)
    return a - (b if alpha == 1 else b * alpha)


@entering(TABLE, "aten.rsub")
def _rsub(xp: Any, self: Any, other: Any, alpha: Any = 1) -> Any:
    return _sub(xp, other, self, alpha)


@entering(TABLE, "aten.mul")
def _mul(xp: Any, self: Any, other: Any) -> Any:
    a, b = promote(xp, self, other)
    return a * b


@entering(TABLE, "aten.div")
def _div(xp: Any, self: Any, other: Any, rounding_mode: str | None = None) -> Any:
    a, b = promote(xp, self, other)
    if rounding_mode == "floor":
        return xp.floor_divide(a, b)
    a, b = as_float(xp, a), as_float(xp, b)
    return xp.trunc(a / b) if rounding_mode == "trunc" else a / b


@entering(TABLE, "aten.floor_divide")
def _floor_divide(xp: Any, self: Any, other: Any) -> Any:
    return xp.floor_divide(*promote(xp, self, other))


@entering(TABLE, "aten.remainder")
def _remainder(xp: Any, self: Any, other: Any) -> Any:
    return xp.remainder(*promote(xp, self, other))


@entering(TABLE, "aten.pow")
def _pow(xp: Any, self: Any, exponent: Any) -> Any:
    a, b = promote(xp, self, exponent)
    return a * a if isinstance(b, (int, float)) and b == 2 else a**b


_BINARY = {
    "aten.eq": "equal",
    "aten.ne": "not_equal",
    "aten.lt": "less",
    "aten.le": "less_equal",
    "aten.gt": "greater",
    "aten.ge": "greater_equal",
    "aten.maximum": "maximum",
    "aten.minimum": "minimum",
    "aten.__and__": "bitwise_and",
    "aten.__or__": "bitwise_or",
    "aten.bitwise_and": "bitwise_and",
    "aten.bitwise_or": "bitwise_or",
    "aten.bitwise_xor": "bitwise_xor",
    "aten.logical_and": "logical_and",
    "aten.logical_or": "logical_or",
    "aten.atan2": "arctan2",
}
_FLOAT_UNARY = {
    "aten.sqrt": "sqrt",
    "aten.exp": "exp",
    "aten.expm1": "expm1",
    "aten.log": "log",
    "aten.log1p": "log1p",
    "aten.log2": "log2",
    "aten.sin": "sin",
    "aten.cos": "cos",
    "aten.tanh": "tanh",
    "aten.reciprocal": "reciprocal",
}
_UNARY = {
    "aten.neg": "negative",
    "aten.abs": "abs",
    "aten.floor": "floor",
    "aten.ceil": "ceil",
    "aten.trunc": "trunc",
    "aten.round": "round",
    "aten.sign": "sign",
    "aten.bitwise_not": "invert",
    "aten.logical_not": "logical_not",
    "aten.isnan": "isnan",
    "aten.isinf": "isinf",
}


def _binary(name: str) -> Function:
    return lambda xp, self, other: getattr(xp, name)(*promote(xp, self, other))


def _unary(name: str, to_float: bool) -> Function:
    return lambda xp, self: getattr(xp, name)(as_float(xp, self) if to_float else self)


TABLE.update({key: _binary(name) for key, name in _BINARY.items()})
TABLE.update({key: _unary(name, True) for key, name in _FLOAT_UNARY.items()})
TABLE.update({key: _unary(name, False) for key, name in _UNARY.items()})


@entering(TABLE, "aten.rsqrt")
def _rsqrt(xp: Any, self: Any) -> Any:
    return 1.0 / xp.sqrt(as_float(xp, self))


@entering(TABLE, "aten.erf")
def _erf(xp: Any, self: Any) -> Any:
    return special(xp).erf(self)


@entering(TABLE, "aten.clamp", "aten.hardtanh", "aten.clip")
def clamp(xp: Any, self: Any, min: Any = None, max: Any = None, min_val: Any = None, max_val: Any = None) -> Any:
    """`self` held between two bounds, either of which may be missing."""
    low, high = (min if min_val is None else min_val), (max if max_val is None else max_val)
    if low is not None:
        self = xp.maximum(*promote(xp, self, low))
    return self if high is None else xp.minimum(*promote(xp, self, high))


TABLE["aten.clamp_min"] = lambda xp, self, min: clamp(xp, self, min=min)
TABLE["aten.clamp_max"] = lambda xp, self, max: clamp(xp, self, max=max)
TABLE["aten.relu"] = lambda xp, self: xp.maximum(self, 0)
TABLE["aten.relu6"] = lambda xp, self: clamp(xp, self, 0, 6)


@entering(TABLE, "aten.sigmoid")
def sigmoid(xp: Any, self: Any) -> Any:
    """1 / (1 + exp(-x)), by the tanh that does not overflow."""
    return 0.5 * (xp.tanh(0.5 * as_float(xp, self)) + 1)


@entering(TABLE, "aten.hardsigmoid")
def hardsigmoid(xp: Any, self: Any) -> Any:
    """min(max(x + 3, 0), 6) / 6."""
    return clamp(xp, self + 3, 0, 6) / 6


TABLE["aten.hardswish"] = lambda xp, self: self * hardsigmoid(xp, self)
TABLE["aten.silu"] = lambda xp, self: self * sigmoid(xp, self)


@entering(TABLE, "aten.softplus")
def softplus(xp: Any, self: Any, beta: float = 1, threshold: float = 20) -> Any:
    """log(1 + exp(beta x)) / beta, linear above the threshold."""
    scaled = self * beta
    return xp.where(scaled > threshold, self, xp.log1p(xp.exp(xp.minimum(scaled, threshold))) / beta)


TABLE["aten.mish"] = lambda xp, self: self * xp.tanh(softplus(xp, self))


@entering(TABLE, "aten.gelu")
def _gelu(xp: Any, self: Any, approximate: str = "none") -> Any:
    if approximate == "tanh":
        return 0.5 * self * (1 + xp.tanh(math.sqrt(2 / math.pi) * (self + 0.044715 * self * self * self)))
    return 0.5 * self * (1 + special(xp).erf(self * math.sqrt(0.5)))


@entering(TABLE, "aten.elu")
def _elu(xp: Any, self: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Any:
    negative = alpha * xp.expm1(xp.minimum(self, 0) * input_scale)
    return xp.where(self > 0, self, negative) * scale


@entering(TABLE, "aten.leaky_relu")
def _leaky_relu(xp: Any, self: Any, negative_slope: float = 0.01) -> Any:
    return xp.where(self > 0, self, self * negative_slope)


@entering(TABLE, "aten.prelu")
def _prelu(xp: Any, self: Any, weight: Any) -> Any:
    shape = [1, -1] + [1] * (self.ndim - 2) if self.ndim > 1 else [-1]
    return xp.where(self > 0, self, self * weight.reshape(shape))


@entering(TABLE, "aten.where")
def _where(xp: Any, condition: Any, self: Any, other: Any) -> Any:
    a, b = promote(xp, self, other)
    return xp.where(condition, a, b)


@entering(TABLE, "aten.masked_fill")
def _masked_fill(xp: Any, self: Any, mask: Any, value: Any) -> Any:
    return xp.where(mask, xp.asarray(value, dtype=self.dtype), self)


def axes(dim: Any) -> Any:
    """A dimension argument as numpy takes it: None for all, an int, or a tuple."""
    return None if dim is None or dim == [] else tuple(dim) if isinstance(dim, list) else dim


@entering(TABLE, "aten.mean")
def _mean(xp: Any, self: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    return xp.mean(self if dtype is None else self.astype(dtype), axis=axes(dim), keepdims=keepdim)


@entering(TABLE, "aten.sum")
def _sum(xp: Any, self: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    wide = dtype or (self.dtype if is_floating(xp, self) else xp.int64)
    return xp.sum(self.astype(wide), axis=axes(dim), keepdims=keepdim)


@entering(TABLE, "aten.var")
def _var(xp: Any, self: Any, dim: Any = None, correction: Any = None, keepdim: bool = False, **rest: Any) -> Any:
    unbiased = 1 if rest.get("unbiased", True) else 0
    return xp.var(self, axis=axes(dim), ddof=unbiased if correction is None else correction, keepdims=keepdim)


TABLE["aten.std"] = lambda xp, **arguments: xp.sqrt(_var(xp, **arguments))
TABLE["aten.amax"] = lambda xp, self, dim=None, keepdim=False: xp.max(self, axis=axes(dim), keepdims=keepdim)
TABLE["aten.amin"] = lambda xp, self, dim=None, keepdim=False: xp.min(self, axis=axes(dim), keepdims=keepdim)
TABLE["aten.argmax"] = lambda xp, self, dim=None, keepdim=False: xp.argmax(self, axis=dim, keepdims=keepdim)
TABLE["aten.argmin"] = lambda xp, self, dim=None, keepdim=False: xp.argmin(self, axis=dim, keepdims=keepdim)
TABLE["aten.any"] = lambda xp, self, dim=None, keepdim=False: xp.any(self, axis=axes(dim), keepdims=keepdim)
TABLE["aten.all"] = lambda xp, self, dim=None, keepdim=False: xp.all(self, axis=axes(dim), keepdims=keepdim)


@entering(TABLE, "aten.cumsum")
def _cumsum(xp: Any, self: Any, dim: int, dtype: Any = None) -> Any:
    wide = dtype or (self.dtype if is_floating(xp, self) else xp.int64)
    return xp.cumsum(self.astype(wide), axis=dim)


@entering(TABLE, "aten.softmax", "aten._softmax")
def softmax(xp: Any, self: Any, dim: int, dtype: Any = None, half_to_float: bool = False) -> Any:
    """exp(x) / sum(exp(x)) along `dim`; a row of -inf alone gives NaN, as in torch."""
    x = self if dtype is None else self.astype(dtype)
    powers = xp.exp(x - xp.max(x, axis=dim, keepdims=True))
    return powers / xp.sum(powers, axis=dim, keepdims=True)


@entering(TABLE, "aten.log_softmax", "aten._log_softmax")
def _log_softmax(xp: Any, self: Any, dim: int, dtype: Any = None, half_to_float: bool = False) -> Any:
    x = self if dtype is None else self.astype(dtype)
    shifted = x - xp.max(x, axis=dim, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=dim, keepdims=True))


@entering(TABLE, "aten.linalg_vector_norm")
def _vector_norm(xp: Any, self: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    x = abs(self if dtype is None else self.astype(dtype))
    if ord == math.inf:
        return xp.max(x, axis=axes(dim), keepdims=keepdim)
    return xp.sum(x**ord, axis=axes(dim), keepdims=keepdim) ** (1 / ord)
