"""Watch a tensor over calibration data and choose the range that its integers cover."""

from typing import Any

import torch
from torch import Tensor

from hasten.quantization import affine, ranges
from hasten.quantization.histogram import Histogram
from hasten.quantization.torchao import ObserverBase


class _Activation(ObserverBase):  # type: ignore[misc]
    """Watches while `rounding` is None, then rounds with what it has learnt; the gradient passes where nothing clips.

    Source of the straight-through gradient: Bengio et al. 2013, "Estimating or Propagating Gradients Through
    Stochastic Neurons for Conditional Computation".
    """

    def __init__(self, dtype: torch.dtype, quant_min: int, quant_max: int, qscheme: torch.qscheme, **_: Any) -> None:
        super().__init__(dtype)
        # torchao reads these three.
        self.quant_min, self.quant_max, self.qscheme = quant_min, quant_max, qscheme
        self.symmetric = qscheme == torch.per_tensor_symmetric
        self.rounding: tuple[float, int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Watch `x` and pass it on, or round it."""
        if self.rounding is not None:
            return torch.fake_quantize_per_tensor_affine(x, *self.rounding, self.quant_min, self.quant_max)
        self.watch(x)
        return x

    def watch(self, x: Tensor) -> None:
        """Learn from `x`."""
        raise NotImplementedError

    def start_rounding(self) -> None:
        """Freeze the range that was found."""
        scale, zero_point = self.calculate_qparams()
        self.rounding = float(scale), int(zero_point)


class Range(_Activation):
    """Watches a streaming histogram and covers the part of it that `method` chooses; memory is flat.

    Args:
        method: A name in `ranges.METHODS`.
    """

    def __init__(self, *grid: Any, method: str = "min_max", **named: Any) -> None:
        super().__init__(*grid, **named)
        self.method = method
        self.histogram = Histogram()

    def watch(self, x: Tensor) -> None:
        """Learn from `x`."""
        self.histogram.add(x)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, scalars."""
        chosen = ranges.METHODS[self.method](self.histogram, self.quant_min, self.quant_max, self.symmetric)
        low, high = torch.tensor(chosen, dtype=torch.float64)
        return affine.parameters(low, high, self.quant_min, self.quant_max, self.symmetric)


class MovingAverage(_Activation):
    """Covers the exponentially weighted average of every batch's extremes (Jacob et al. 2018, section 3.1).

    Args:
        momentum: Weight of a new batch.
    """

    def __init__(self, *grid: Any, momentum: float = 0.05, **named: Any) -> None:
        super().__init__(*grid, **named)
        self.momentum = momentum
        self.extremes: Tensor | None = None

    def watch(self, x: Tensor) -> None:
        """Learn from `x`."""
        extremes = torch.stack(x.detach().float().aminmax())
        self.extremes = extremes if self.extremes is None else self.extremes.lerp(extremes, self.momentum)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, scalars."""
        low, high = torch.zeros(2) if self.extremes is None else self.extremes
        return affine.parameters(low, high, self.quant_min, self.quant_max, self.symmetric)


class PerChannelWeight(ObserverBase):  # type: ignore[misc]
    """Symmetric range of every slice of a weight along `ch_axis`; weights are constants, so the last look counts."""

    def __init__(
        self, dtype: torch.dtype, quant_min: int, quant_max: int, qscheme: torch.qscheme, ch_axis: int, **_: Any
    ) -> None:
        super().__init__(dtype)
        self.quant_min, self.quant_max, self.qscheme, self.ch_axis = quant_min, quant_max, qscheme, ch_axis
        # Buffers, so that they are where the weights are. The smallest scale is raised by a bias that would otherwise
        # not fit its 32 bits.
        for name in ("low", "high", "smallest_scale"):
            self.register_buffer(name, torch.zeros(1), persistent=False)
        self.is_rounding = False

    def forward(self, x: Tensor) -> Tensor:
        """Watch `x`, and pass it on as it is or rounded to the range it has now."""
        rest = [dim for dim in range(x.ndim) if dim != self.ch_axis]
        self.low, self.high = x.detach().amin(rest), x.detach().amax(rest)
        if not self.is_rounding:
            return x
        scale, zero_point = self.calculate_qparams()
        return torch.fake_quantize_per_channel_affine(
            x, scale, zero_point.int(), self.ch_axis, self.quant_min, self.quant_max
        )

    def start_rounding(self) -> None:
        """Round from now on."""
        self.is_rounding = True

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
