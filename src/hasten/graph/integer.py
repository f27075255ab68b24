"""A quantized network as integer arithmetic alone: what integer hardware computes, exact to the last bit.

A layer is an integer product, a 32-bit bias and a fixed-point rescaling, as in Jacob et al. 2018, "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 2.2. `hasten.graph.to_integers`
makes it from a graph. Values between layers are flat, [N, channels * height * width] for images.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.manifest import read_npz

FILE = "net.npz"


def bits_of(low: int, high: int) -> tuple[int, int]:
    """Sign bit (0 or 1) and magnitude bits of integers from `low` to `high`."""
    return int(low < 0), max(high, -low - 1 if low < 0 else 0).bit_length()


@dataclass(frozen=True)
class Rescale:
    """acc -> clip(floor(acc * multiplier / 2**shift + zero_point + 1/2), low, high).

    Attributes:
        multiplier: [filters] int64, positive; one for each row of a linear layer or filter of a convolution.
        shift: Common to all outputs.
        zero_point: Of the result.
        low: Smallest result.
        high: Largest result.
    """

    multiplier: np.ndarray
    shift: int
    zero_point: int
    low: int
    high: int

    def apply(self, sums: np.ndarray) -> np.ndarray:
        """Integers [N, out] int64 of accumulators [N, out]."""
        multiplier = np.repeat(self.multiplier, sums.shape[1] // len(self.multiplier))
        rounded = (sums * multiplier + (self.zero_point << self.shift) + (1 << self.shift >> 1)) >> self.shift
        clipped: np.ndarray = np.clip(rounded, self.low, self.high)
        return clipped


@dataclass(frozen=True)
class Dense:
    """x -> rescale(weight x + bias); without `rescale` the accumulators are the result.

    Attributes:
        weight: [out, in] int64 within int8.
        bias: [out] int64 within int32; holds the correction for the input's zero point.
        rescale: To the next layer's integers, or None.
        pixel: [out] int64, the output pixel that a row of a written-out convolution belongs to; rows of one pixel read
            the same inputs. All 0 for a linear layer.
    """

    weight: np.ndarray
    bias: np.ndarray
    rescale: Rescale | None
    pixel: np.ndarray

    @property
    def products(self) -> int:
        """Products of one sample by weights that are not zero."""
        return int(np.count_nonzero(self.weight))

    def sums(self, q: np.ndarray) -> np.ndarray:
        """Accumulators [N, out] int64 of integers [N, in]."""
        made: np.ndarray = q @ self.weight.T + self.bias
        return made


@dataclass(frozen=True)
class Convolution:
    """Two-dimensional, perhaps grouped; averages over equal windows are convolutions with ones.

    Attributes:
        weight: [filters, channels / groups, height, width] int64 within int8.
        bias: [filters] int64 within int32; holds the correction for the input's zero point.
        rescale: See `Dense`.
        shape: Channels, height and width of the input.
        stride: Along height and width, as are the next two.
        padding: With `border`, on either side.
        dilation: Between taps.
        groups: Groups of channels.
        border: The input's zero point.
    """

    weight: np.ndarray
    bias: np.ndarray
    rescale: Rescale | None
    shape: tuple[int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    border: int

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the result."""
        high, wide = (
            (self.shape[1 + i] + 2 * self.padding[i] - self.dilation[i] * (self.weight.shape[2 + i] - 1) - 1)
            // self.stride[i]
            + 1
            for i in (0, 1)
        )
        return high, wide

    @property
    def products(self) -> int:
        """Products of one sample by weights that are not zero, those with the border included."""
        return int(np.count_nonzero(self.weight)) * math.prod(self.out_size)

    def sums(self, q: np.ndarray) -> np.ndarray:
        """Accumulators [N, filters * height * width] int64 of integers [N, channels * height * width]."""
        (high, wide), (sh, sw), (dh, dw) = self.out_size, self.stride, self.dilation
        ends = [(pad, pad) for pad in self.padding]
        x = np.pad(q.reshape(len(q), *self.shape), [(0, 0), (0, 0), *ends], constant_values=self.border)
        # Floats of 64 bits hold every sum of products of 8 bits exactly, and have fast products.
        x = x.reshape(len(q), self.groups, -1, *x.shape[2:]).astype(np.float64)
        weight = self.weight.reshape(self.groups, -1, *self.weight.shape[1:]).astype(np.float64)
        made = np.zeros((len(q), self.groups, weight.shape[1], high * wide))
        for r, s in np.ndindex(*self.weight.shape[2:]):
            part = x[..., r * dh : r * dh + (high - 1) * sh + 1 : sh, s * dw : s * dw + (wide - 1) * sw + 1 : sw]
            made += weight[..., r, s] @ part.reshape(*part.shape[:3], -1)
        sums: np.ndarray = made.reshape(len(q), len(self.bias), -1).astype(np.int64) + self.bias[:, None]
        return sums.reshape(len(q), -1)


@dataclass(frozen=True)
class IntegerNet:
    """Layers of integers between float inputs and float outputs.

    Attributes:
        input_scale: x -> clip(round(x / input_scale) + input_zero_point, input_low, input_high).
        input_zero_point: See `input_scale`.
        input_low: Smallest input integer.
        input_high: Largest input integer.
        layers: In order.
        output_scale: [out] or [1] float64; output = (integer - output_zero_point) * output_scale.
        output_zero_point: See `output_scale`.
    """

    input_scale: float
    input_zero_point: int
    input_low: int
    input_high: int
    layers: tuple[Dense | Convolution, ...]
    output_scale: np.ndarray
    output_zero_point: int

    @property
    def products(self) -> int:
        """Products of one sample by weights that are not zero."""
        return sum(layer.products for layer in self.layers)

    @property
    def ends(self) -> dict[str, Any]:
        """What whoever builds the hardware has to know of the numbers that go in and come out."""
        return {
            "input_bits": sum(bits_of(self.input_low, self.input_high)),
            "input_scale": self.input_scale,
            "input_zero_point": self.input_zero_point,
            "input_low": self.input_low,
            "input_high": self.input_high,
            "output_zero_point": self.output_zero_point,
        }

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """Input integers [N, in] int64 of float inputs [N, ...]."""
        inverse = np.float32(1.0 / self.input_scale)
        q = np.round(x.astype(np.float32) * inverse) + self.input_zero_point
        integers: np.ndarray = np.clip(q, self.input_low, self.input_high).astype(np.int64).reshape(len(x), -1)
        return integers

    def run(self, q: np.ndarray) -> np.ndarray:
        """Output integers [N, out] int64 of input integers [N, in]."""
        for layer in self.layers:
            q = layer.sums(q)
            q = q if layer.rescale is None else layer.rescale.apply(q)
        return q

    def dequantize(self, q: np.ndarray) -> np.ndarray:
        """Float outputs [N, out] of output integers."""
        values: np.ndarray = ((q - self.output_zero_point) * self.output_scale).astype(np.float32)
        return values

    def save(self, folder: Path) -> None:
        """Write all integers as `net.npz` into an existing folder."""
        values: dict[str, Any] = {
            "input": np.array([self.input_zero_point, self.input_low, self.input_high]),
            "input_scale": np.array(self.input_scale),
            "output_scale": self.output_scale,
            "output_zero_point": np.array(self.output_zero_point),
            "layers": np.array(len(self.layers)),
        }
        for index, layer in enumerate(self.layers):
            values |= {f"weight_{index}": layer.weight, f"bias_{index}": layer.bias}
            if isinstance(layer, Dense):
                values[f"pixel_{index}"] = layer.pixel
            else:
                c = layer
                values[f"window_{index}"] = np.array([*c.shape, *c.stride, *c.padding, *c.dilation, c.groups, c.border])
            if (r := layer.rescale) is not None:
                values[f"multiplier_{index}"] = r.multiplier
                values[f"rescale_{index}"] = np.array([r.shift, r.zero_point, r.low, r.high])
        np.savez(folder / FILE, **values)

    @classmethod
    def load(cls, folder: Path) -> "IntegerNet":
        """Read what `save` wrote."""
        v = read_npz(folder / FILE)
        layers = tuple(_layer(v, index) for index in range(int(v["layers"])))
        zero_point, low, high = map(int, v["input"])
        scale, output_zero_point = float(v["input_scale"]), int(v["output_zero_point"])
        return cls(scale, zero_point, low, high, layers, v["output_scale"], output_zero_point)


def _layer(v: dict[str, np.ndarray], index: int) -> Dense | Convolution:
    rescale = None
    if f"rescale_{index}" in v:
        rescale = Rescale(v[f"multiplier_{index}"], *map(int, v[f"rescale_{index}"]))
    weight, bias = v[f"weight_{index}"], v[f"bias_{index}"]
    if f"pixel_{index}" in v:
        return Dense(weight, bias, rescale, v[f"pixel_{index}"])
    c, h, w, sh, sw, ph, pw, dh, dw, groups, border = map(int, v[f"window_{index}"])
    return Convolution(weight, bias, rescale, (c, h, w), (sh, sw), (ph, pw), (dh, dw), groups, border)
