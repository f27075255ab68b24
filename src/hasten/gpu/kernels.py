"""Triton kernels for what PyTorch has no kernel for: convolutions of int8 on Tensor Cores.

Imports triton, so only imported where it is needed; nothing here needs a GPU until it is launched, and Triton's
interpreter (`TRITON_INTERPRET=1`) runs it on the CPU.
"""

from typing import Any

import triton
import triton.language as tl

constexpr = tl.constexpr


@triton.jit
def int8_convolution(
    x,
    weight,
    scale,
    bias,
    y,
    rows,
    height,
    width,
    out_height,
    out_width,
    channels,
    filters,
    zero_point: constexpr,
    kernel_height: constexpr,
    kernel_width: constexpr,
    stride_height: constexpr,
    stride_width: constexpr,
    pad_height: constexpr,
    pad_width: constexpr,
    dilation_height: constexpr,
    dilation_width: constexpr,
    block_rows: constexpr,
    block_filters: constexpr,
    block_channels: constexpr,
):
    """y = (x * weight) * scale + bias as an implicit matrix product, one row per output pixel.

    x int8 [N, height, width, channels], weight int8 [filters, kernel_height, kernel_width, channels], scale and bias
    float32 [filters], y [N, out_height, out_width, filters], all contiguous; `rows` = N * out_height * out_width.
    Beyond the border x is `zero_point`. Sums are int32. `channels` and `filters` may be any number.
    """
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    column = tl.program_id(1) * block_filters + tl.arange(0, block_filters)
    inner = tl.arange(0, block_channels)
    q = row % out_width
    p = (row // out_width) % out_height
    image = row // (out_width * out_height)
    total = tl.zeros((block_rows, block_filters), dtype=tl.int32)
    for r in range(kernel_height):
        for s in range(kernel_width):
            h = p * stride_height - pad_height + r * dilation_height
            w = q * stride_width - pad_width + s * dilation_width
            inside = (h >= 0) & (h < height) & (w >= 0) & (w < width) & (row < rows)
            # 64 bits: a batch of large images has more than 2**31 elements.
            pixel = ((image.to(tl.int64) * height + h) * width + w) * channels
            tap = (column.to(tl.int64) * kernel_height * kernel_width + r * kernel_width + s) * channels
            for start in range(0, channels, block_channels):
                c = start + inner
                a = tl.load(
                    x + pixel[:, None] + c[None, :],
                    mask=inside[:, None] & (c < channels)[None, :],
                    other=zero_point,
                )
                b = tl.load(
                    weight + tap[None, :] + c[:, None],
                    mask=(c < channels)[:, None] & (column < filters)[None, :],
                    other=0,
                )
                total = tl.dot(a, b, total, out_dtype=tl.int32)
    known = column < filters
    factor = tl.load(scale + column, mask=known, other=0.0)
    offset = tl.load(bias + column, mask=known, other=0.0)
    result = total.to(tl.float32) * factor[None, :] + offset[None, :]
    place = row.to(tl.int64)[:, None] * filters + column[None, :]
    tl.store(y + place, result.to(y.dtype.element_ty), mask=(row < rows)[:, None] & known[None, :])


def blocks(rows: int, filters: int, channels: int) -> dict[str, int]:
    """Block sizes and launch options: large where there is enough work to fill a GPU with them."""
    many = rows * filters >= 128 * 128 * 100
    wide = 128 if filters >= 128 and many else 64 if filters > 32 else 32
    tall = 128 if many else 64 if rows > 32 else 16
    deep = 128 if channels >= 128 else 64 if channels >= 64 else 32
    return {
        "block_rows": tall,
        "block_filters": wide,
        "block_channels": deep,
        "num_warps": 8 if tall * wide >= 128 * 128 else 4,
        "num_stages": 3,
    }


def launch(kernel: Any, tensors: tuple[Any, ...], geometry: dict[str, int], zero_point: int) -> None:
    """Launch `int8_convolution`, or what `torch.library.wrap_triton` made of it, over `tensors` (x, weight, scale,
    bias, y) with `geometry` (strides, padding and dilation by the kernel's names)."""
    x, weight, _, _, y = tensors
    _, height, width, channels = x.shape
    filters, kernel_height, kernel_width, _ = weight.shape
    _, out_height, out_width, _ = y.shape
    rows = y.shape[0] * out_height * out_width
    size = blocks(rows, filters, channels)
    grid = (triton.cdiv(rows, size["block_rows"]), triton.cdiv(filters, size["block_filters"]))
    kernel[grid](
        *tensors,
        rows,
        height,
        width,
        out_height,
        out_width,
        channels,
        filters,
        zero_point,
        kernel_height=kernel_height,
        kernel_width=kernel_width,
        **geometry,
        **size,
    )


def geometry(stride: list[int], padding: list[int], dilation: list[int]) -> dict[str, int]:
    """Height and width of each by the kernel's names."""
    pairs = {"stride": stride, "pad": padding, "dilation": dilation}
    sides = ("height", "width")
    return {f"{n}_{side}": value for n, pair in pairs.items() for side, value in zip(sides, pair, strict=True)}
