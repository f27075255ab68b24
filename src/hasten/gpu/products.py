"""Products on Tensor Cores, as functions of ATen operators that `torch.export` traces through.

Every function also runs on the CPU with the same integers, which is how they are tested without a GPU.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_FP8 = torch.float8_e4m3fn
_FP8_MAX = 448.0
# What cuBLAS asks of an int8 product on Tensor Cores.
_INT_MM_MIN_ROWS = 17
_INT_MM_MULTIPLE = 8
_SPARSE_ROWS = 8


def int8_linear(q: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """(q weight^T) * scale + bias with int32 sums.

    Args:
        q: int8 [..., in].
        weight: int8 [out, in].
        scale: float32 [out].
        bias: float32 [out], with the correction for the zero point of `q`.
        dtype: Of the result [..., out].
    """
    rows = q.reshape(-1, q.shape[-1])
    aligned = rows.shape[1] % _INT_MM_MULTIPLE == 0 and len(weight) % _INT_MM_MULTIPLE == 0
    if rows.is_cuda and not (aligned and len(rows) >= _INT_MM_MIN_ROWS):
        image = rows.reshape(len(rows), 1, 1, -1)
        y: Tensor = convolution()(image, weight[:, None, None], scale, bias, [1, 1], [0, 0], [1, 1], 0, dtype)
    else:
        y = (torch._int_mm(rows, weight.t()).float() * scale + bias).to(dtype)
    return y.reshape(*q.shape[:-1], len(weight))


def int8_conv2d(
    q: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    zero_point: int,
    dtype: torch.dtype,
) -> Tensor:
    """Convolution with int32 sums; beyond the border is `zero_point`.

    Args:
        q: int8 [N, C, H, W].
        weight: int8 [K, R, S, C].
        scale: float32 [K].
        bias: float32 [K], with the correction for the zero point of `q`.
        stride: Of height and width.
        padding: See `stride`.
        dilation: See `stride`.
        zero_point: What stands for 0 in `q`.
        dtype: Of the result [N, K, P, Q].
    """
    image = q.permute(0, 2, 3, 1).contiguous()
    function = convolution() if q.is_cuda else convolution_reference
    y = function(image, weight, scale, bias, stride, padding, dilation, zero_point, dtype)
    # The strides of channels-last, which is how convolutions want their input.
    return y.permute(0, 3, 1, 2)


def convolution_reference(
    image: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    zero_point: int,
    dtype: torch.dtype,
) -> Tensor:
    """What the kernel computes, as an integer product over every tap's slice of the image; shapes as the kernel's."""
    sizes = output_size(image.shape[1:3], weight.shape[1:3], stride, padding, dilation)
    x = F.pad(image, (0, 0, padding[1], padding[1], padding[0], padding[0]), value=zero_point)
    high, wide = ((size - 1) * step + 1 for size, step in zip(sizes, stride, strict=True))
    taps = [
        x[:, top : top + high : stride[0], left : left + wide : stride[1]]
        for top in range(0, weight.shape[1] * dilation[0], dilation[0])
        for left in range(0, weight.shape[2] * dilation[1], dilation[1])
    ]
    patches = torch.cat(taps, 3)
    total = torch._int_mm(patches.reshape(-1, patches.shape[3]), weight.reshape(len(weight), -1).t())
    return (total.float() * scale + bias).to(dtype).reshape(len(image), *sizes, len(weight))


@functools.cache
def convolution() -> Any:
    """The Triton kernel as an operator that Inductor compiles into what it packages.

    Raises:
        ImportError: triton is not installed; PyTorch's CUDA builds bring it along.
    """
    from torch.library import triton_op, wrap_triton

    from hasten.gpu import kernels

    @triton_op("hasten::int8_convolution", mutates_args=())
    def int8_convolution(
        image: Tensor,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        zero_point: int,
        dtype: torch.dtype,
    ) -> Tensor:
        sizes = output_size(image.shape[1:3], weight.shape[1:3], stride, padding, dilation)
        y = image.new_empty((image.shape[0], *sizes, weight.shape[0]), dtype=dtype)
        geometry = kernels.geometry(stride, padding, dilation)
        kernels.launch(wrap_triton(kernels.int8_convolution), (image, weight, scale, bias, y), geometry, zero_point)
        return y

    return int8_convolution


def output_size(image: Any, kernel: Any, stride: list[int], padding: list[int], dilation: list[int]) -> list[int]:
    """Height and width of a convolution's result."""
    rows = zip(image, kernel, stride, padding, dilation, strict=True)
    return [(size + 2 * pad - step * (taps - 1) - 1) // jump + 1 for size, taps, jump, pad, step in rows]


def fp8_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [out, in] as fp8 (e4m3) and its scales float32 [1, out], the largest of each row at fp8's largest."""
    scale = (weight.float().abs().amax(1, keepdim=True) / _FP8_MAX).clamp(min=1e-12)
    return (weight.float() / scale).to(_FP8), scale.t().contiguous()


def fp8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias with operands in fp8 (e4m3), every row of `x` scaled to fp8's range as it comes.

    Args:
        x: float [..., in].
        weight: fp8 [out, in].
        scale: float32 [1, out].
        bias: [out] or None.

    Returns:
        bfloat16 [..., out].
    """
    rows = x.reshape(-1, x.shape[-1]).float()
    factor = (rows.abs().amax(1, keepdim=True) / _FP8_MAX).clamp(min=1e-12)
    q = (rows / factor).clamp(-_FP8_MAX, _FP8_MAX).to(_FP8)
    return fp8_product(q, factor, weight, scale, bias).reshape(*x.shape[:-1], len(weight))


def fp8_product(q: Tensor, factor: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """(q factor) (weight scale)^T + bias with operands in fp8 (e4m3).

    Args:
        q: fp8 [..., in].
        factor: float32 [rows, 1], or [1, 1] for all rows alike.
        weight: fp8 [out, in].
        scale: float32 [1, out].
        bias: [out] or None.

    Returns:
        bfloat16 [..., out].
    """
    rows = q.reshape(-1, q.shape[-1])
    factors = factor.expand(len(rows), 1).contiguous()
    y = torch._scaled_mm(
        rows, weight.t(), scale_a=factors, scale_b=scale, out_dtype=torch.bfloat16, use_fast_accum=True
    )
    y = y if bias is None else y + bias.bfloat16()
    return y.reshape(*q.shape[:-1], len(weight))


def is_two_four(weight: Tensor) -> bool:
    """Whether of every 4 neighbours in a row at most 2 are not zero, and not all of the weight is."""
    if weight.ndim != 2 or weight.shape[1] % 4:
        return False
    kept = (weight.reshape(len(weight), -1, 4) != 0).sum(2)
    return bool((kept <= 2).all()) and bool((kept > 0).any())


def sparse_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias with a 2:4 sparse weight by cuSPARSELt.

    Args:
        x: float [..., in].
        packed: `torch._cslt_compress(weight)` of fp16 or bf16 [out, in]; it has `out` rows.
        bias: [out] or None.

    Returns:
        The dtype of `packed`, [..., out].
    """
    rows = x.reshape(-1, x.shape[-1]).to(packed.dtype)
    count = len(rows)
    rows = F.pad(rows, (0, 0, 0, -count % _SPARSE_ROWS))
    y = torch._cslt_sparse_mm(packed, rows.t(), None if bias is None else bias.to(packed.dtype)).t()[:count]
    return y.reshape(*x.shape[:-1], y.shape[-1])
