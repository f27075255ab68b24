"""Convolutions and averages of images written out as one matrix, a row per output number: what fixed logic computes."""

from collections.abc import Sequence

import numpy as np

from hasten.errors import Unsupported
from hasten.graph.plan import Call


def convolution(
    weight: np.ndarray,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The matrix of a convolution without bias.

    Args:
        weight: [filters, channels / groups, kernel height, kernel width].
        shape: Channels, height and width of the input.
        stride: One or two numbers, as are the next two.
        padding: Of zeros.
        dilation: Between taps.
        groups: Groups of channels.

    Returns:
        [filters * pixels, channels * height * width], and the pixel of every row. Taps beyond the border are absent,
        so that a correction for a zero point by the sum of a row stays right.
    """
    filters, taken, taps_high, taps_wide = weight.shape
    _, height, width = shape
    (sh, sw), (ph, pw), (dh, dw) = (tuple(v) * (2 // len(v)) for v in (stride, padding, dilation))
    out_high = (height + 2 * ph - dh * (taps_high - 1) - 1) // sh + 1
    out_wide = (width + 2 * pw - dw * (taps_wide - 1) - 1) // sw + 1
    made = np.zeros((filters, out_high, out_wide, *shape), weight.dtype)
    of_group = filters // groups
    for p, q, r, s in np.ndindex(out_high, out_wide, taps_high, taps_wide):
        h, w = p * sh - ph + r * dh, q * sw - pw + s * dw
        if 0 <= h < height and 0 <= w < width:
            for group in range(groups):
                rows, columns = (slice(group * n, (group + 1) * n) for n in (of_group, taken))
                made[rows, p, q, columns, h, w] = weight[rows, :, r, s]
    pixels = out_high * out_wide
    return made.reshape(filters * pixels, -1), np.tile(np.arange(pixels), filters)


def average(call: Call, shape: Sequence[int]) -> tuple[np.ndarray, int, np.ndarray]:
    """The matrix of an average over windows of an image: ones, how many of them a row has, and the pixel of every row.

    Raises:
        Unsupported: Windows that overlap the border or differ in size, or a mean over other dimensions.
    """
    channels, height, width = shape
    high, wide, stride = _window(call, height, width)
    if not high or not wide:
        raise Unsupported(f"An average must be over equal windows of height and width, but {call.operator} is not.")
    ones = np.ones((channels, 1, high, wide), np.int64)
    matrix, pixel = convolution(ones, shape, stride, (0, 0), (1, 1), channels)
    return matrix, high * wide, pixel


def _window(call: Call, height: int, width: int) -> tuple[int, int, tuple[int, int]]:
    """Height, width and stride of the windows; zeros if they are not equal."""
    a = call.arguments
    if call.operator == "aten.mean":
        fits = sorted(d % 4 for d in a.get("dim") or ()) == [2, 3]
        return (height, width, (1, 1)) if fits else (0, 0, (1, 1))
    if call.operator == "aten.adaptive_avg_pool2d":
        high, wide = a["output_size"]
        fits = height % high == 0 and width % wide == 0
        return (height // high, width // wide, (height // high, width // wide)) if fits else (0, 0, (1, 1))
    kernel = list(a["kernel_size"]) * (2 // len(a["kernel_size"]))
    stride = list(a.get("stride") or kernel)
    stride = stride * (2 // len(stride))
    if any(a.get("padding") or ()) or a.get("ceil_mode") or a.get("divisor_override"):
        return 0, 0, (1, 1)
    return kernel[0], kernel[1], (stride[0], stride[1])
