"""Watch a tensor over calibration data and choose the range that its integers cover."""

from typing import Any

import torch
from torch import Tensor

from hasten.quantization import affine
from hasten.quantization.torchao import ObserverBase


class MinMax(ObserverBase):  # type: ignore[misc]
    """Covers everything that was seen."""

    def __init__(self, dtype: torch.dtype, quant_min: int, quant_max: int, qscheme: torch.qscheme, **_: Any) -> None:
        super().__init__(dtype)
        self.quant_min, self.quant_max, self.qscheme = quant_min, quant_max, qscheme
        self.low, self.high = torch.tensor(float("inf")), torch.tensor(float("-inf"))

    def forward(self, x: Tensor) -> Tensor:
        """Watch `x` and pass it on."""
        low, high = x.detach().aminmax()
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, scalars."""
        symmetric = self.qscheme == torch.per_tensor_symmetric
        return affine.parameters(self.low, self.high, self.quant_min, self.quant_max, symmetric)


class PerChannelWeight(ObserverBase):  # type: ignore[misc]
    """Symmetric range of every slice of a weight along `ch_axis`; weights are constants, so the last look counts."""

    def __init__(
        self, dtype: torch.dtype, quant_min: int, quant_max: int, qscheme: torch.qscheme, ch_axis: int, **_: Any
    ) -> None:
        super().__init__(dtype)
        self.quant_min, self.quant_max, self.qscheme, self.ch_axis = quant_min, quant_max, qscheme, ch_axis
        self.low, self.high = torch.zeros(1), torch.zeros(1)
        # Raised by a bias that would otherwise not fit its 32 bits.
        self.smallest_scale = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        """Watch `x` and pass it on."""
        rest = [dim for dim in range(x.ndim) if dim != self.ch_axis]
        self.low, self.high = x.detach().amin(rest), x.detach().amax(rest)
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, one per channel."""
        bound = torch.maximum(-self.low, self.high)
        # The lowest integer stays unused, so that the integers are symmetric too.
        scale, zero = affine.parameters(-bound, bound, self.quant_min, self.quant_max, True)
        return torch.maximum(scale, self.smallest_scale), torch.zeros_like(zero)
