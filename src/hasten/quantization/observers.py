"""Watch a tensor over calibration data and choose the range that its integers cover."""

from typing import Any

import torch
from torch import Tensor

from hasten.quantization import affine, ranges
from hasten.quantization.histogram import Histogram
from hasten.quantization.torchao import ObserverBase


class Range(ObserverBase):  # type: ignore[misc]
    """Watches a streaming histogram and covers the part of it that `method` chooses; memory is flat.

    Args:
        method: A name in `ranges.METHODS`.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        quant_min: int,
        quant_max: int,
        qscheme: torch.qscheme,
        method: str = "min_max",
        **_: Any,
    ) -> None:
        super().__init__(dtype)
        self.quant_min, self.quant_max, self.qscheme, self.method = quant_min, quant_max, qscheme, method
        self.histogram = Histogram()

    def forward(self, x: Tensor) -> Tensor:
        """Watch `x` and pass it on."""
        self.histogram.add(x)
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, scalars."""
        symmetric = self.qscheme == torch.per_tensor_symmetric
        chosen = ranges.METHODS[self.method](self.histogram, self.quant_min, self.quant_max, symmetric)
        low, high = torch.tensor(chosen, dtype=torch.float64)
        return affine.parameters(low, high, self.quant_min, self.quant_max, symmetric)


class MovingAverage(ObserverBase):  # type: ignore[misc]
    """Covers the exponentially weighted average of every batch's extremes (Jacob et al. 2018, section 3.1).

    Args:
        momentum: Weight of a new batch.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        quant_min: int,
        quant_max: int,
        qscheme: torch.qscheme,
        momentum: float = 0.05,
        **_: Any,
    ) -> None:
        super().__init__(dtype)
        self.quant_min, self.quant_max, self.qscheme, self.momentum = quant_min, quant_max, qscheme, momentum
        self.extremes: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Watch `x` and pass it on."""
        extremes = torch.stack(x.detach().float().aminmax())
        self.extremes = extremes if self.extremes is None else self.extremes.lerp(extremes, self.momentum)
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, scalars."""
        low, high = torch.zeros(2) if self.extremes is None else self.extremes
        symmetric = self.qscheme == torch.per_tensor_symmetric
        return affine.parameters(low, high, self.quant_min, self.quant_max, symmetric)


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


OBSERVERS: dict[str, Any] = {
    **{method: Range.with_args(method=method) for method in ranges.METHODS},
    "moving_average": MovingAverage,
}
"""What watches activations, by the name of the option `Quantize.observer`."""
