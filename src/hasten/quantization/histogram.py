"""A streaming histogram whose memory does not grow with the data."""

import math

import torch
from torch import Tensor

from hasten.errors import InvalidInput

_HALF = 2048


class Histogram:
    """Counts of values in `2 * _HALF` equal bins around zero; the bins double in width when a value falls outside.

    Zero is always a bin edge, and doubling merges pairs of bins, so that no count is ever split by a guess.

    Attributes:
        width: Width of one bin; 0 until a value other than zero was seen.
        counts: [2 * _HALF] float64.
        zeros: How many values were exactly zero, as a ReLU leaves them; part of `counts`.
        low, high: The exact extremes seen.
    """

    def __init__(self) -> None:
        self.width = 0.0
        self.zeros = 0
        self.counts = torch.zeros(2 * _HALF, dtype=torch.float64)
        self.low, self.high = math.inf, -math.inf

    def add(self, values: Tensor) -> None:
        """Count finite `values` of any shape."""
        flat = values.detach().flatten().float()
        if not len(flat):
            return
        low, high = (float(x) for x in flat.aminmax())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.zeros += int((flat == 0).sum())
        self._cover(max(-low, high))
        if self.width == 0:
            self.counts[_HALF] += len(flat)
            return
        reach = self.width * _HALF
        self.counts += torch.histc(flat, 2 * _HALF, -reach, reach).double()

    @property
    def centers(self) -> Tensor:
        """The middle of every bin, [2 * _HALF] float64."""
        return (torch.arange(2 * _HALF, dtype=torch.float64) - _HALF + 0.5) * self.width

    def _cover(self, reach: float) -> None:
        if reach == 0:
            return
        if not math.isfinite(reach):
            raise InvalidInput("Activations must be finite, but a batch made NaN or infinite ones. Check its values.")
        if self.width == 0:
            # A little more than the first batch reaches, so that the next rarely doubles the bins.
            self.width = 1.25 * reach / _HALF
        while reach >= self.width * _HALF:
            pairs = self.counts.view(-1, 2).sum(1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[_HALF // 2 : _HALF // 2 + _HALF] = pairs
            self.width *= 2
