"""Which part of a tensor's distribution its integers cover: the trade of clipping a few against rounding all.

Source: Nagel et al. 2021, "A White Paper on Neural Network Quantization", section 3.1 (min-max, MSE); entropy after
Migacz 2017, "8-bit Inference with TensorRT".
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hasten.quantization import affine
from hasten.quantization.histogram import Histogram

# How much of the observed range is kept, from a fifth up to all of it.
_SHARES = torch.linspace(0.2, 1.0, 41, dtype=torch.float64)
_PERCENTILE = 0.9999

Range = tuple[float, float]


def min_max(histogram: Histogram, quant_min: int, quant_max: int, symmetric: bool) -> Range:
    """Everything that was seen."""
    return histogram.low, histogram.high


def percentile(histogram: Histogram, quant_min: int, quant_max: int, symmetric: bool) -> Range:
    """The range that leaves out one value in 10,000 at either end, to the accuracy of a bin."""
    cumulative = histogram.counts.cumsum(0) / histogram.counts.sum()
    edges = histogram.centers
    low = float(edges[torch.searchsorted(cumulative, 1 - _PERCENTILE)]) - histogram.width / 2
    high = float(edges[min(int(torch.searchsorted(cumulative, _PERCENTILE)), len(edges) - 1)]) + histogram.width / 2
    return max(low, histogram.low), min(high, histogram.high)


def mse(histogram: Histogram, quant_min: int, quant_max: int, symmetric: bool) -> Range:
    """The range with the smallest mean squared error after rounding."""
    return _search(histogram, lambda low, high: _squared_error(histogram, low, high, quant_min, quant_max, symmetric))


def entropy(histogram: Histogram, quant_min: int, quant_max: int, symmetric: bool) -> Range:
    """The range whose rounded distribution diverges least (Kullback-Leibler) from the observed one."""
    # Exact zeros are exactly representable: their spike would only draw the range together.
    counts = histogram.counts.clone()
    counts[len(counts) // 2] -= histogram.zeros
    levels = quant_max - quant_min + 1

    def cost(low: Tensor, high: Tensor) -> Tensor:
        pairs = zip(low, high, strict=True)
        return torch.stack([_divergence(histogram.centers, counts, a, b, levels) for a, b in pairs])

    return _search(histogram, cost)


METHODS: dict[str, Callable[[Histogram, int, int, bool], Range]] = {
    "min_max": min_max,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}


def _search(histogram: Histogram, cost: Callable[[Tensor, Tensor], Tensor]) -> Range:
    """The best common share of both ends, then the best share of each end alone; ties keep more of the range."""
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if low == high:
        return low, high
    keep = (torch.ones_like(_SHARES) * low, torch.ones_like(_SHARES) * high)
    each = ((True, True), (True, False), (False, True))
    for both in each if low < 0 < high else each[:1]:
        lows = keep[0] * _SHARES if both[0] else keep[0]
        highs = keep[1] * _SHARES if both[1] else keep[1]
        costs = cost(lows, highs)
        best = len(costs) - 1 - int(costs.flip(0).argmin())
        keep = (torch.ones_like(_SHARES) * lows[best], torch.ones_like(_SHARES) * highs[best])
    return float(keep[0][0]), float(keep[1][0])


def _squared_error(
    histogram: Histogram, low: Tensor, high: Tensor, quant_min: int, quant_max: int, symmetric: bool
) -> Tensor:
    """Sum of squared errors for every candidate range, [candidates]."""
    scale, zero = affine.parameters(low[:, None], high[:, None], quant_min, quant_max, symmetric)
    x = histogram.centers[None]
    rounded = ((x / scale).round() + zero).clamp(quant_min, quant_max)
    return (((rounded - zero) * scale - x).square() * histogram.counts).sum(1)


def _divergence(centers: Tensor, counts: Tensor, low: Tensor, high: Tensor, levels: int) -> Tensor:
    inside = (centers >= low) & (centers <= high)
    if int(inside.sum()) < 2:
        return torch.tensor(torch.inf, dtype=torch.float64)
    observed = counts[inside].clone()
    # What is clipped ends in the outermost bins; the rounded distribution does not know about it.
    kept = observed.clone()
    observed[0] += counts[centers < low].sum()
    observed[-1] += counts[centers > high].sum()
    level = ((centers[inside] - low) / (high - low) * (levels - 1)).round().long()
    occupied = (kept > 0).double()
    mass = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, kept)
    bins = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, occupied)
    rounded = (mass / bins.clamp(min=1))[level] * occupied
    p, q = observed / observed.sum(), rounded / rounded.sum().clamp(min=1e-30)
    return torch.where(p > 0, p * (p.clamp(min=1e-30) / q.clamp(min=1e-12)).log(), 0.0).sum()
