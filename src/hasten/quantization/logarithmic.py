"""Logarithmic quantization: a sign and a power of two, so that a multiplication is a shift.

Source: Miyashita et al. 2016, "Convolutional Neural Networks using Logarithmic Data Representation", section 3
(base 2 and base sqrt 2).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.errors import InvalidInput
from hasten.quantization.linear import check_finite

BASES = {"2": 2.0, "sqrt2": math.sqrt(2.0)}


@dataclass(frozen=True)
class LogQuantized:
    """Signs and exponents: x' = sign * base ** (top - code), and 0 where sign is 0.

    Attributes:
        sign: int8 in {-1, 0, 1}, the shape of the original tensor.
        code: uint8, how many powers below the largest, the shape of the original tensor.
        top: Exponent of the largest magnitude, int64, [channels] or [1].
        base: 2 or sqrt(2).
    """

    sign: Tensor
    code: Tensor
    top: Tensor
    base: float

    def dequantize(self) -> Tensor:
        """The float32 tensor that the signs and exponents stand for."""
        top = self.top.view(-1, *[1] * (self.sign.ndim - 1)).double()
        return (self.sign * self.base ** (top - self.code.double())).float()


def quantize(x: Tensor, bits: int, *, base: str = "2", per_channel: bool = True) -> LogQuantized:
    """Round `x` to the nearest signed power in the logarithmic domain.

    Of `bits` bits one is the sign; one of the other codes is zero, which leaves 2 ** (bits - 1) - 1 magnitudes. A
    magnitude that is kept is off by a factor of at most base ** 0.5. What lies more than half a power below the
    smallest magnitude becomes zero.

    Args:
        x: Any shape; output channels are dimension 0.
        bits: 2 to 8.
        base: "2" or "sqrt2".
        per_channel: One largest exponent per output channel, else one for the tensor.

    Raises:
        InvalidInput: `x` is empty or not finite, or an argument is outside its range.
    """
    if not 2 <= bits <= 8:
        raise InvalidInput(f"`bits` must be in [2, 8], but got {bits}.")
    if base not in BASES:
        raise InvalidInput(f"`base` must be one of {', '.join(BASES)}, but got {base!r}.")
    check_finite(x)
    magnitude = x.detach().double().abs()
    # Half a power below the smallest normal float32 there is nothing left to represent.
    exponent = magnitude.clamp(min=1e-300).log2() / math.log2(BASES[base])
    rounded = exponent.round()
    largest = rounded.reshape(len(x), -1).amax(1) if per_channel and x.ndim else rounded.amax().reshape(1)
    top = largest.view(-1, *[1] * (x.ndim - 1)) if x.ndim else largest[0]
    code = top - rounded
    levels = 2 ** (bits - 1) - 1
    sign = torch.where((code >= levels) | (magnitude == 0), 0, x.sign()).to(torch.int8)
    return LogQuantized(sign, code.clamp(0, levels - 1).to(torch.uint8), largest.long(), BASES[base])
