"""Linear quantization of a weight at any width, symmetric or not, per tensor, per channel or per group.

Source: Nagel et al. 2021, "A White Paper on Neural Network Quantization", sections 2.2 and 2.4.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.errors import InvalidInput
from hasten.quantization import affine

GRANULARITIES = ("tensor", "channel", "group")


@dataclass(frozen=True)
class Quantized:
    """Integers and what they stand for: x' = (integers - zero_point) * scale, in blocks of `shape`.

    Attributes:
        integers: int8 (symmetric) or uint8, [blocks, length].
        scale: float32, [blocks, 1].
        zero_point: int64, [blocks, 1].
        shape: Shape of the original tensor.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    shape: torch.Size

    def dequantize(self) -> Tensor:
        """The float32 tensor that the integers stand for, in the original shape."""
        return affine.dequantize(self.integers.long(), self.scale, self.zero_point).reshape(self.shape)


def quantize(x: Tensor, bits: int, *, symmetric: bool, granularity: str, group: int = 32) -> Quantized:
    """Round `x` to integers of `bits` bits.

    Args:
        x: Any shape; output channels are dimension 0.
        bits: 2 to 8. Symmetric integers leave the lowest of two's complement out: 2 bits are -1, 0, 1.
        symmetric: Zero point 0, else any.
        granularity: One scale for the "tensor", for each "channel", or for each "group" of consecutive weights of a
            channel.
        group: Length of a group; must divide the weights of a channel.

    Raises:
        InvalidInput: `x` is empty or not finite, or an argument is outside its range.
    """
    blocks = _blocks(x, bits, granularity, group)
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    top = 2 ** (bits - 1) - 1
    quant_min, quant_max = (-top, top) if symmetric else (0, 2**bits - 1)
    scale, zero = affine.parameters(low, high, quant_min, quant_max, symmetric)
    integers = affine.quantize(blocks, scale, zero, quant_min, quant_max)
    return Quantized(integers.to(torch.int8 if symmetric else torch.uint8), scale, zero, x.shape)


def _blocks(x: Tensor, bits: int, granularity: str, group: int) -> Tensor:
    if not 2 <= bits <= 8:
        raise InvalidInput(f"`bits` must be in [2, 8], but got {bits}.")
    if granularity not in GRANULARITIES:
        raise InvalidInput(f"`granularity` must be one of {', '.join(GRANULARITIES)}, but got {granularity!r}.")
    check_finite(x)
    channels = x.detach().float().reshape(len(x) if x.ndim else 1, -1)
    if granularity == "tensor":
        return channels.reshape(1, -1)
    if granularity == "channel":
        return channels
    if group < 1 or channels.shape[1] % group:
        raise InvalidInput(f"`group` must divide the {channels.shape[1]} weights of a channel, but got {group}.")
    return channels.reshape(-1, group)


def check_finite(x: Tensor) -> None:
    """Refuse what has no range.

    Raises:
        InvalidInput: `x` is empty, or holds NaN or infinite values.
    """
    if not x.numel():
        raise InvalidInput(f"A tensor to quantize must hold values, but got shape {tuple(x.shape)}.")
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise InvalidInput(f"A tensor to quantize must be finite, but {bad} of {x.numel()} values are NaN or infinite.")
