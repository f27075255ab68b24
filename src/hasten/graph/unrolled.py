"""Convolutions written out as one matrix, a row per output number: what fixed logic computes."""

from dataclasses import replace

import numpy as np

from hasten.graph.integer import Convolution, Dense, IntegerNet


def written_out(net: IntegerNet) -> IntegerNet:
    """The same network of linear layers alone; its matrices have `out * in` entries, so it must be small."""
    return replace(net, layers=tuple(_dense(x) if isinstance(x, Convolution) else x for x in net.layers))


def _dense(layer: Convolution) -> Dense:
    matrix = _matrix(layer)
    pixels = len(matrix) // len(layer.bias)
    # Taps on the border are absent: what they would have added moves to the bias.
    absent = layer.weight.sum(axis=(1, 2, 3)).repeat(pixels) - matrix.sum(axis=1)
    rescale = layer.rescale and replace(layer.rescale, multiplier=layer.rescale.multiplier.repeat(pixels))
    pixel = np.tile(np.arange(pixels), len(layer.bias))
    return Dense(matrix, layer.bias.repeat(pixels) + layer.border * absent, rescale, pixel)


def _matrix(layer: Convolution) -> np.ndarray:
    """[filters * pixels, channels * height * width]."""
    filters, taken, *taps = layer.weight.shape
    _, height, width = layer.shape
    high, wide = layer.out_size
    made = np.zeros((filters, high, wide, *layer.shape), layer.weight.dtype)
    of_group = filters // layer.groups
    for p, q, r, s in np.ndindex(high, wide, *taps):
        h = p * layer.stride[0] - layer.padding[0] + r * layer.dilation[0]
        w = q * layer.stride[1] - layer.padding[1] + s * layer.dilation[1]
        if 0 <= h < height and 0 <= w < width:
            for group in range(layer.groups):
                rows, columns = (slice(group * n, (group + 1) * n) for n in (of_group, taken))
                made[rows, p, q, columns, h, w] = layer.weight[rows, :, r, s]
    return made.reshape(filters * high * wide, -1)
