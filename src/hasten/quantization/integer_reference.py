"""The golden model: a quantized graph computed in integers with numpy.

Weights and activations are int8, sums 32 bits wide, requantization is fixed point and rounds half to even. PyTorch
computes the same graph in float32 between quantize and dequantize, runtimes in their own kernels; each may differ from
this by a rounding, and `differences` says where.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node

from hasten.graph.capture import as_tuple
from hasten.graph.layers import CONVOLUTIONS
from hasten.quantization import operators
from hasten.quantization.fixed_point import multipliers, round_shift
from hasten.quantization.torchao import DEQUANTIZE_PER_CHANNEL
from hasten.task import Inputs

aten = torch.ops.aten

_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class Integers:
    """Numbers (q - zero_point) * scale; q is int64. Scale and zero point are scalars, or one per slice of `axis`."""

    q: np.ndarray
    scale: np.ndarray
    zero_point: int
    axis: int | None = None

    def centered(self) -> np.ndarray:
        """q - zero_point."""
        return self.q - self.zero_point

    def to_float(self) -> torch.Tensor:
        """float32 values."""
        return torch.from_numpy((self.centered() * self.scale).astype(np.float32))


@dataclass(frozen=True)
class Sum:
    """A sum of integer terms, each with a scale that broadcasts against it, clipped to [low, high] when rounded."""

    terms: tuple[tuple[np.ndarray, np.ndarray], ...]
    low: float = -np.inf
    high: float = np.inf

    def to_float(self) -> torch.Tensor:
        """float32 values."""
        total = sum(values * scale for values, scale in self.terms)
        return torch.from_numpy(np.clip(np.asarray(total), self.low, self.high).astype(np.float32))

    def round_to(self, scale: float, zero_point: int, low: int, high: int) -> np.ndarray:
        """Integers of the sum in another scale."""
        factors, shift = multipliers(*(np.asarray(own, np.float64) / scale for _, own in self.terms))
        total = sum(values * m for (values, _), m in zip(self.terms, factors, strict=True))
        q: np.ndarray = round_shift(np.asarray(total), shift) + zero_point
        if np.isfinite(self.low):
            low = max(low, round(self.low / scale) + zero_point)
        if np.isfinite(self.high):
            high = min(high, round(self.high / scale) + zero_point)
        clipped: np.ndarray = np.clip(q, low, high)
        return clipped


@dataclass(frozen=True)
class Difference:
    """How far a quantize node of the torch graph is from the reference on the same inputs to its operator.

    Attributes:
        node: Name of the quantize node.
        operator: What it rounds the output of.
        max_steps: Largest distance in steps.
        share: Share of values that differ.
    """

    node: str
    operator: str
    max_steps: int
    share: float


def run(graph: GraphModule, inputs: Inputs, *, saturating: bool = False) -> tuple[np.ndarray, ...]:
    """The outputs of a quantized graph, float32, computed in integers wherever its operators allow.

    Operators without integer form (softmax, layer norm, ...) run in float32 between the integer ones.

    Args:
        graph: Quantized graph.
        inputs: One batch.
        saturating: Whether linear layers add pairs of products in 16 bits that saturate, as x86 CPUs without VNNI do
            (VPMADDUBSW: u8 x s8 products of neighbours); convolutions stay exact here.
    """
    return tuple(x.numpy() for x in as_tuple(_Executor(graph, saturating=saturating).run(*inputs)))


def differences(graph: GraphModule, inputs: Inputs) -> list[Difference]:
    """Compare operator by operator: each is computed from the integers that the torch graph had in front of it."""
    observed = _Observer(graph)
    with torch.no_grad():
        observed.run(*inputs)
    executor = _Executor(graph, observed.integers)
    executor.run(*inputs)
    return executor.found


class _Observer(Interpreter):
    """Runs the torch graph and keeps the integers of every quantize node."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.integers: dict[str, np.ndarray] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if _is(n, "quantize_per_tensor"):
            self.integers[n.name] = result.numpy().astype(np.int64)
        return result


class _Executor(Interpreter):
    """Values are `Integers` or `Sum` where operators run on integers, else torch tensors."""

    def __init__(
        self, graph: GraphModule, given: dict[str, np.ndarray] | None = None, *, saturating: bool = False
    ) -> None:
        super().__init__(graph)
        self._graph, self._given, self._saturating = graph, given, saturating
        self.found: list[Difference] = []

    def run_node(self, n: Node) -> Any:
        with torch.no_grad():
            if n.op == "output":
                values = self.map_nodes_to_values(n.args[0], n)
                return torch.utils._pytree.tree_map(_as_float, values)
            if n.op != "call_function":
                return super().run_node(n)
            args = self.map_nodes_to_values(n.args, n)
            result: Integers | Sum | None = self._quantization(n, args)
            if result is None:
                result = _in_integers(n, args, self._saturating)
            if result is not None:
                return result
            kwargs = self.map_nodes_to_values(n.kwargs, n)
            floats = torch.utils._pytree.tree_map(_as_float, (args, kwargs))
            return n.target(*floats[0], **floats[1])  # type: ignore[operator]

    def _quantization(self, n: Node, args: Any) -> Integers | None:
        if n.target is DEQUANTIZE_PER_CHANNEL:
            q, scale = args[0].numpy().astype(np.int64), args[1].double().numpy()
            return Integers(q, scale.reshape([-1 if d == args[3] else 1 for d in range(q.ndim)]), 0, args[3])
        if _is(n, "dequantize_per_tensor"):
            return args[0] if isinstance(args[0], Integers) else None
        if not _is(n, "quantize_per_tensor"):
            return None
        value, scale, zero, low, high = args[:5]
        scale, zero = float(scale), int(zero)  # tensors where the graph computes them
        if isinstance(value, Integers):
            value = Sum(((value.centered(), value.scale),))
        if isinstance(value, Sum):
            q = value.round_to(scale, zero, low, high)
        else:
            q = np.clip(np.rint(value.numpy() / np.float32(scale)) + zero, low, high).astype(np.int64)
        if self._given is not None:
            q = self._compare(n, q)
        return Integers(q, np.array(scale, np.float64), zero)

    def _compare(self, n: Node, q: np.ndarray) -> np.ndarray:
        assert self._given is not None
        theirs = self._given[n.name]
        apart = np.abs(theirs - q)
        source = n.args[0]
        assert isinstance(source, Node)
        self.found.append(Difference(n.name, str(source.target), int(apart.max()), float((apart > 0).mean())))
        return theirs


def _in_integers(n: Node, args: Any, saturating: bool) -> Integers | Sum | None:
    """The result of an operator whose inputs are integers; None where it has no integer form here."""
    first = args[0] if args else None
    if n.target in operators.ADDITIONS and not n.kwargs and len(args) == 2:
        left, right = map(_terms, args)
        return Sum(left + right) if left and right else None
    if isinstance(first, Sum):
        return _clamp(n, args, first)
    if not isinstance(first, Integers):
        return None
    if n.target in _LAYERS and isinstance(args[1], Integers):
        return _layer(n, args, saturating)
    if n.target == aten.adaptive_avg_pool2d.default and list(args[1]) == [1, 1]:
        count = first.q.shape[-1] * first.q.shape[-2]
        return Sum(((first.centered().sum((-1, -2), keepdims=True), first.scale / count),))
    if operators.pads_with_zero(n):
        pads = list(zip(args[1][::2], args[1][1::2], strict=True))[::-1]
        widths = [(0, 0)] * (first.q.ndim - len(pads)) + pads
        return replace(first, q=np.pad(first.q, widths, constant_values=first.zero_point))
    if n.target in operators.VALUE_PRESERVING:
        # Choosing is the same on integers; float64 holds them exactly.
        chosen = n.target(torch.from_numpy(first.q).double(), *args[1:], **n.kwargs)
        return replace(first, q=chosen.numpy().astype(np.int64))
    return None


def _terms(value: Any) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """A value as terms of a sum; none if it is float or has been clipped."""
    if isinstance(value, Integers):
        return ((value.centered(), value.scale),)
    unclipped = isinstance(value, Sum) and (value.low, value.high) == (-np.inf, np.inf)
    return value.terms if unclipped else ()


def _clamp(n: Node, args: Any, value: Sum) -> Sum | None:
    name = operators.activation_of(n)
    if name == "relu":
        return replace(value, low=max(value.low, 0.0))
    if name == "relu6":
        return replace(value, low=max(value.low, 0.0), high=min(value.high, 6.0))
    if name in ("hardtanh", "clamp"):
        default = 1.0 if name == "hardtanh" else None
        low, high = _argument(args, 1, default and -default), _argument(args, 2, default)
        return replace(
            value,
            low=value.low if low is None else max(value.low, low),
            high=value.high if high is None else min(value.high, high),
        )
    return None


def _layer(n: Node, args: Any, saturating: bool) -> Sum | None:
    """A convolution or linear layer: 32-bit sums of products, plus the bias in the same scale."""
    x, weight = args[0], args[1]
    bias = args[2] if len(args) > 2 else None
    if bias is not None and not isinstance(bias, Integers):
        return None
    if saturating and n.target is aten.linear.default:
        # The hardware multiplies the stored integers; the zero point's part is taken off the sums.
        sums = saturating_product(x.q, weight.q) - x.zero_point * weight.q.sum(1)
    else:
        sums = _LAYERS[n.target](x.centered(), weight.q, args)
    channel = 1 if n.target in CONVOLUTIONS else sums.ndim - 1
    shape = [-1 if dim == channel else 1 for dim in range(sums.ndim)]
    if bias is not None:
        sums = sums + bias.q.reshape(shape)
    if sums.min() < _INT32.min or sums.max() > _INT32.max:
        raise OverflowError(f"the sums of {n.name} do not fit 32 bits")
    return Sum(((sums, (x.scale * weight.scale).reshape(shape)),))


def _conv2d(x: np.ndarray, weight: np.ndarray, args: Any) -> np.ndarray:
    (sy, sx), (py, px), (dy, dx) = ((list(_argument(args, 3 + i, [d])) * 2)[:2] for i, d in enumerate((1, 0, 1)))
    groups = _argument(args, 6, 1)
    x = np.pad(x, ((0, 0), (0, 0), (py, py), (px, px)))
    height, width = (weight.shape[2] - 1) * dy + 1, (weight.shape[3] - 1) * dx + 1
    windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), (2, 3))[:, :, ::sy, ::sx, ::dy, ::dx]
    batch, channels, rows, columns = windows.shape[:4]
    windows = windows.reshape(batch, groups, channels // groups, rows, columns, *weight.shape[2:])
    kernels = weight.reshape(groups, -1, *weight.shape[1:])
    sums: np.ndarray = np.einsum("bgcyxhw,gochw->bgoyx", windows, kernels, optimize=True)
    return sums.reshape(batch, -1, rows, columns)


def _linear(x: np.ndarray, weight: np.ndarray, args: Any) -> np.ndarray:
    product: np.ndarray = x @ weight.T
    return product


def saturating_product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x [..., k] of u8 times weight [n, k] of s8, pairs of products added in 16 bits, pairs added in 32: [..., n]."""
    if x.shape[-1] % 2:
        x, weight = (np.concatenate([part, np.zeros_like(part[..., :1])], -1) for part in (x, weight))
    products = x[..., None, :] * weight
    limits = np.iinfo(np.int16)
    sums: np.ndarray = np.clip(products[..., ::2] + products[..., 1::2], limits.min, limits.max).sum(-1)
    return sums


_LAYERS: dict[Any, Callable[[np.ndarray, np.ndarray, Any], np.ndarray]] = {
    aten.conv2d.default: _conv2d,
    aten.linear.default: _linear,
}


def _argument(args: Any, position: int, default: Any) -> Any:
    return args[position] if len(args) > position else default


def _as_float(value: Any) -> Any:
    return value.to_float() if isinstance(value, (Integers, Sum)) else value


def _is(n: Node, name: str) -> bool:
    return str(n.target).startswith(f"quantized_decomposed.{name}.")
