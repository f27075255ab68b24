"""Matrix products, convolutions, pooling, normalization, attention, embedding, resizing."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hasten.errors import Unsupported
from hasten.graph.aten.elementwise import axes, promote, softmax
from hasten.graph.aten.shapes import pad
from hasten.graph.aten.table import Function, entering

TABLE: dict[str, Function] = {
    "aten.matmul": lambda xp, self, other: xp.matmul(self, other),
    "aten.bmm": lambda xp, self, mat2: xp.matmul(self, mat2),
    "aten.mm": lambda xp, self, mat2: xp.matmul(self, mat2),
    "aten.einsum": lambda xp, equation, tensors, path=None: xp.einsum(equation, *tensors),
    "aten.embedding": lambda xp, weight, indices, **_: xp.take(weight, indices, axis=0),
}


@entering(TABLE, "aten.linear")
def _linear(xp: Any, input: Any, weight: Any, bias: Any = None) -> Any:
    product = xp.matmul(input, xp.swapaxes(weight, 0, -1))
    return product if bias is None else product + bias


@entering(TABLE, "aten.addmm", "aten.baddbmm")
def _addmm(xp: Any, self: Any, beta: Any = 1, alpha: Any = 1, **factors: Any) -> Any:
    a, b = (factors["mat1"], factors["mat2"]) if "mat1" in factors else (factors["batch1"], factors["batch2"])
    product = xp.matmul(a, b)
    return (self if beta == 1 else self * beta) + (product if alpha == 1 else product * alpha)


def per_dimension(value: Any, rank: int) -> list[Any]:
    """An argument given once or per spatial dimension, per dimension."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return list(values) * rank if len(values) == 1 else list(values)


def convolution_padding(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    """Padding before and after every spatial dimension, from numbers or `same` / `valid`."""
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(t // 2, t - t // 2) for t in total]
    return [(p, p) for p in per_dimension(padding, len(kernel))]


def windows(xp: Any, x: Any, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Any:
    """The patches under a sliding kernel.

    Args:
        x: [N, C, *size].

    Returns:
        [N, C, prod(kernel), *out].
    """
    size = x.shape[2:]
    out = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)]
    patches = []
    for offset in itertools.product(*map(range, kernel)):
        index = [
            slice(o * d, o * d + (n - 1) * s + 1, s) for o, d, n, s in zip(offset, dilation, out, stride, strict=True)
        ]
        patches.append(x[(slice(None), slice(None), *index)])
    return xp.stack(patches, axis=2)


def _flat_pads(pads: Sequence[tuple[int, int]]) -> list[int]:
    return [amount for pair in reversed(pads) for amount in pair]


@entering(TABLE, "aten.conv1d", "aten.conv2d", "aten.conv3d")
def convolve(
    xp: Any,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Convolution of any rank as one matrix product over patches.

    Args:
        xp: The array namespace.
        input: [N, C, *size].
        weight: [O, C / groups, *kernel].
        bias: [O] or None.
        stride: Once or per spatial dimension.
        padding: See `stride`; or `same` / `valid`.
        dilation: See `stride`.
        groups: Of channels.

    Returns:
        [N, O, *out].
    """
    kernel = weight.shape[2:]
    rank = len(kernel)
    stride, dilation = per_dimension(stride, rank), per_dimension(dilation, rank)
    pads = convolution_padding(padding, kernel, dilation)
    x = pad(xp, input, _flat_pads(pads)) if any(map(any, pads)) else input
    patches = windows(xp, x, kernel, stride, dilation)
    batch, out, features = x.shape[0], patches.shape[3:], weight.shape[0]
    columns = xp.reshape(patches, (batch, groups, weight.shape[1] * math.prod(kernel), math.prod(out)))
    matrix = xp.reshape(weight, (groups, features // groups, -1))
    result = xp.reshape(xp.matmul(matrix, columns), (batch, features, *out))
    return result if bias is None else result + xp.reshape(bias, (-1, *[1] * rank))


@entering(TABLE, "aten.conv_transpose1d", "aten.conv_transpose2d")
def _conv_transpose(
    xp: Any,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """A transposed convolution is a convolution over the input spread out by the stride, with the kernel turned."""
    kernel = weight.shape[2:]
    rank = len(kernel)
    stride, padding, output_padding, dilation = (
        per_dimension(v, rank) for v in (stride, padding, output_padding, dilation)
    )
    spread = input
    for axis, step in enumerate(stride, start=2):
        parts = xp.stack([spread] + [xp.zeros_like(spread)] * (step - 1), axis=axis + 1)
        shape = (*spread.shape[:axis], spread.shape[axis] * step, *spread.shape[axis + 1 :])
        spread = xp.reshape(parts, shape)[(slice(None),) * axis + (slice(None, shape[axis] - step + 1),)]
    pads = [
        (d * (k - 1) - p, d * (k - 1) - p + extra)
        for k, p, d, extra in zip(kernel, padding, dilation, output_padding, strict=True)
    ]
    turned = xp.flip(weight, axis=tuple(range(2, 2 + rank)))
    grouped = xp.reshape(turned, (groups, weight.shape[0] // groups, weight.shape[1], *kernel))
    forward = xp.reshape(xp.swapaxes(grouped, 1, 2), (groups * weight.shape[1], weight.shape[0] // groups, *kernel))
    return convolve(xp, pad(xp, spread, _flat_pads(pads)), forward, bias, dilation=dilation, groups=groups)


@entering(TABLE, "aten.convolution")
def _convolution(xp: Any, transposed: bool = False, output_padding: Any = 0, **arguments: Any) -> Any:
    if transposed:
        return _conv_transpose(xp, output_padding=output_padding, **arguments)
    return convolve(xp, **arguments)


@entering(TABLE, "aten.max_pool1d", "aten.max_pool2d")
def _max_pool(
    xp: Any, self: Any, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Any:
    return xp.max(_pool_windows(xp, self, kernel_size, stride, padding, dilation, ceil_mode, -math.inf), axis=2)


@entering(TABLE, "aten.avg_pool1d", "aten.avg_pool2d")
def _avg_pool(
    xp: Any,
    self: Any,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    if ceil_mode:
        raise Unsupported("aten.avg_pool2d must have ceil_mode=False, but has True. Pad the input instead.")
    total = xp.sum(_pool_windows(xp, self, kernel_size, stride, padding, 1, False, 0), axis=2)
    if divisor_override or count_include_pad:
        rank = self.ndim - 2
        return total / (divisor_override or math.prod(per_dimension(kernel_size, rank)))
    ones = xp.ones((1, 1, *self.shape[2:]), dtype=self.dtype)
    return total / xp.sum(_pool_windows(xp, ones, kernel_size, stride, padding, 1, False, 0), axis=2)


def _pool_windows(
    xp: Any, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, fill: float
) -> Any:
    rank = x.ndim - 2
    kernel = per_dimension(kernel, rank)
    stride = per_dimension(stride, rank) if stride not in ((), []) else kernel
    padding, dilation = per_dimension(padding, rank), per_dimension(dilation, rank)
    pads = []
    for n, k, s, p, d in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True):
        span = d * (k - 1) + 1
        rest = (n + 2 * p - span) % s
        # The last window may start in the input or the padding before it, not beyond.
        extra = s - rest if ceil_mode and rest and n + 2 * p - span + s - rest < n + p else 0
        pads.append((p, p + extra))
    if any(map(any, pads)):
        if not xp.issubdtype(x.dtype, xp.floating) and math.isinf(fill):
            fill = int(xp.iinfo(x.dtype).min)
        x = pad(xp, x, _flat_pads(pads), value=fill)
    return windows(xp, x, kernel, stride, dilation)


@entering(TABLE, "aten.adaptive_avg_pool1d", "aten.adaptive_avg_pool2d")
def _adaptive_avg_pool(xp: Any, self: Any, output_size: Any) -> Any:
    rank = 1 if len(per_dimension(output_size, 1)) == 1 else 2
    for axis, bins in zip(range(self.ndim - rank, self.ndim), per_dimension(output_size, rank), strict=True):
        size = self.shape[axis]
        if bins in (None, size):
            continue
        lead = (slice(None),) * axis
        means = [
            xp.mean(self[(*lead, slice(i * size // bins, -(-(i + 1) * size // bins)))], axis=axis, keepdims=True)
            for i in range(bins)
        ]
        self = means[0] if bins == 1 else xp.concatenate(means, axis=axis)
    return self


def _normalize(xp: Any, x: Any, dims: Any, eps: float) -> Any:
    centred = x - xp.mean(x, axis=dims, keepdims=True)
    return centred / xp.sqrt(xp.mean(centred * centred, axis=dims, keepdims=True) + eps)


def _affine(y: Any, weight: Any, bias: Any) -> Any:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


@entering(TABLE, "aten.layer_norm")
def _layer_norm(
    xp: Any, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, **_: Any
) -> Any:
    return _affine(_normalize(xp, input, tuple(range(-len(normalized_shape), 0)), eps), weight, bias)


TABLE["aten.native_layer_norm"] = lambda xp, **arguments: (_layer_norm(xp, **arguments),)


@entering(TABLE, "aten.rms_norm")
def _rms_norm(xp: Any, input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    dims = tuple(range(-len(normalized_shape), 0))
    eps = float(xp.finfo(input.dtype).eps) if eps is None else eps
    return _affine(input / xp.sqrt(xp.mean(input * input, axis=dims, keepdims=True) + eps), weight, None)


@entering(TABLE, "aten.group_norm")
def _group_norm(
    xp: Any, input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, **_: Any
) -> Any:
    grouped = xp.reshape(input, (input.shape[0], num_groups, -1))
    shape = (-1, *[1] * (input.ndim - 2))
    weight, bias = (None if v is None else xp.reshape(v, shape) for v in (weight, bias))
    return _affine(xp.reshape(_normalize(xp, grouped, -1, eps), input.shape), weight, bias)


@entering(TABLE, "aten.batch_norm")
def _batch_norm(
    xp: Any, input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, eps: float = 1e-5, **rest: Any
) -> Any:
    if rest.get("training"):
        raise Unsupported("aten.batch_norm must be in eval mode, but is training. Call `.eval()` on the model.")
    shape = (-1, *[1] * (input.ndim - 2))
    mean, var = xp.reshape(running_mean, shape), xp.reshape(running_var, shape)
    weight, bias = (None if v is None else xp.reshape(v, shape) for v in (weight, bias))
    return _affine((input - mean) / xp.sqrt(var + eps), weight, bias)


TABLE["aten._native_batch_norm_legit_no_training"] = lambda xp, **arguments: (_batch_norm(xp, **arguments),)


@entering(TABLE, "aten.scaled_dot_product_attention")
def _attention(
    xp: Any,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = xp.repeat(key, times, axis=-3), xp.repeat(value, times, axis=-3)
    scores = xp.matmul(query, xp.swapaxes(key, -1, -2)) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        rows, columns = xp.arange(query.shape[-2])[:, None], xp.arange(key.shape[-2])[None, :]
        scores = xp.where(rows >= columns, scores, -math.inf)
    if attn_mask is not None:
        masked = xp.where(attn_mask, scores, -math.inf) if attn_mask.dtype == bool else scores + attn_mask
        scores = masked.astype(query.dtype)
    return xp.matmul(softmax(xp, scores, -1), value)


def _target_size(x: Any, output_size: Any, scale_factors: Any) -> list[Any]:
    if output_size is not None:
        return list(output_size)
    return [math.floor(n * f) for n, f in zip(x.shape[2:], scale_factors, strict=True)]


@entering(TABLE, "aten.upsample_nearest2d")
def _upsample_nearest(xp: Any, output_size: Any = None, scale_factors: Any = None, **rest: Any) -> Any:
    x = rest["input"] if "input" in rest else rest["self"]
    for axis, size in enumerate(_target_size(x, output_size, scale_factors), start=2):
        length = x.shape[axis]
        # torch rounds the step to float32; twice and once the size are exact there too.
        step = np.float32(1 / scale_factors[axis - 2]) if scale_factors else np.float32(length) / np.float32(size)
        exact = size in (length, 2 * length)
        places = [i * length // size if exact else min(int(np.float32(i) * step), length - 1) for i in range(size)]
        x = xp.take(x, xp.asarray(places), axis=axis)
    return x


@entering(TABLE, "aten.upsample_bilinear2d")
def _upsample_bilinear(
    xp: Any, align_corners: bool, output_size: Any = None, scale_factors: Any = None, **rest: Any
) -> Any:
    x = rest["input"] if "input" in rest else rest["self"]
    sizes = _target_size(x, output_size, scale_factors)
    for index, size in enumerate(sizes):
        axis, length = index + 2, x.shape[index + 2]
        if align_corners:
            step = (length - 1) / (size - 1) if size > 1 else 0.0
            places = [i * step for i in range(size)]
        else:
            step = 1 / scale_factors[index] if scale_factors else length / size
            places = [max((i + 0.5) * step - 0.5, 0.0) for i in range(size)]
        low = [min(int(p), length - 1) for p in places]
        part = [p - i for p, i in zip(places, low, strict=True)]
        high = [min(i + 1, length - 1) for i in low]
        share = xp.reshape(xp.asarray(part, dtype=x.dtype), (-1, *[1] * (x.ndim - axis - 1)))
        below, above = xp.take(x, xp.asarray(low), axis=axis), xp.take(x, xp.asarray(high), axis=axis)
        x = below * (1 - share) + above * share
    return x


@entering(TABLE, "aten.pixel_shuffle")
def _pixel_shuffle(xp: Any, self: Any, upscale_factor: int) -> Any:
    n, c, h, w = self.shape
    r = upscale_factor
    parts = xp.reshape(self, (n, c // r**2, r, r, h, w))
    return xp.reshape(xp.transpose(parts, (0, 1, 4, 2, 5, 3)), (n, c // r**2, h * r, w * r))


@entering(TABLE, "aten.norm")
def _norm(xp: Any, self: Any, p: Any = 2, dim: Any = None, keepdim: bool = False) -> Any:
    a, power = promote(xp, abs(self), 2 if p is None else p)
    return xp.sum(a**power, axis=axes(dim), keepdims=keepdim) ** (1 / power)
