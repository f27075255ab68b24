"""Affine quantization: q = clamp(round(x / scale) + zero_point), x' = (q - zero_point) * scale.

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", section 2.1. Rounding is half to even, as in ONNX, PyTorch and OpenVINO.
"""

import torch
from torch import Tensor

# Below this a range is taken for constant zero; float32 scales much smaller would overflow in x / scale.
_SMALLEST_SCALE = 1e-12


def parameters(low: Tensor, high: Tensor, quant_min: int, quant_max: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (int64) that cover [low, high], of the shape of `low`.

    Zero is always exactly representable. Symmetric: the zero point is the middle of the integers, or `quant_min`
    where nothing is negative and the integers are unsigned.
    """
    low, high = low.clamp(max=0).double(), high.clamp(min=0).double()
    if not symmetric:
        scale = ((high - low) / (quant_max - quant_min)).clamp(min=_SMALLEST_SCALE).float()
        zero = (quant_min - (low / scale.double()).round()).clamp(quant_min, quant_max)
        return scale, zero.long()
    middle = (quant_min + quant_max + 1) // 2
    two_sided = torch.maximum(-low / (middle - quant_min), high / (quant_max - middle))
    one_sided = high / (quant_max - quant_min)
    unsigned = (low == 0) & (quant_min == 0)
    scale = torch.where(unsigned, one_sided, two_sided).clamp(min=_SMALLEST_SCALE).float()
    return scale, torch.where(unsigned, quant_min, middle).long()


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """Integers as int64; `scale` and `zero_point` broadcast against `x`."""
    return ((x / scale).round() + zero_point).clamp(quant_min, quant_max).long()


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The float32 numbers that the integers `q` stand for."""
    return (q - zero_point).float() * scale
