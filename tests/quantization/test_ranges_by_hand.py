"""Histograms, ranges, scales and statistics against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hasten.graph.capture import capture
from hasten.quantization import affine, ranges
from hasten.quantization.histogram import Histogram
from hasten.quantization.statistics import reestimate

BINS = 4096


def filled(*batches: Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


def test_the_first_batch_sets_the_width_with_a_quarter_to_spare() -> None:
    histogram = filled(torch.tensor([-2.0, 0.5]))
    assert histogram.width == pytest.approx(1.25 * 2 / (BINS // 2))
    edges = (np.arange(BINS + 1) - BINS // 2) * histogram.width
    np.testing.assert_allclose(histogram.centers, (edges[1:] + edges[:-1]) / 2)
    np.testing.assert_array_equal(histogram.counts, np.histogram([-2.0, 0.5], edges)[0])


@pytest.mark.parametrize(("value", "times"), [(2.4, 1), (2.5, 2), (-2.5, 2), (4.9, 2), (5.1, 4), (-39.0, 16)])
def test_bins_double_until_they_cover_a_value(value: float, times: int) -> None:
    """The first batch reaches 2, so the bins reach 2.5."""
    first, values = torch.rand(50, generator=torch.Generator().manual_seed(0)) * 4 - 2, torch.tensor([value])
    first[0] = 2
    histogram = filled(first, values)
    assert histogram.width == pytest.approx(times * 2.5 / (BINS // 2))
    # Whatever the first width was: bins of the last, from the middle outwards.
    places = np.floor(np.array([*first.tolist(), value]) / histogram.width).astype(int) + BINS // 2
    assert np.abs(histogram.counts.numpy() - np.bincount(places, minlength=BINS)).sum() <= 2  # one on an edge


def test_zeros_are_counted_beside_the_middle_whatever_comes_first() -> None:
    zeros, others = torch.zeros(5), torch.tensor([-1.0, 0.0, 1.0])
    for batches in ((zeros, others), (others, zeros)):
        histogram = filled(*batches, torch.empty(0))
        assert histogram.zeros == 6
        assert histogram.counts[BINS // 2] == 6
        assert histogram.counts.sum() == 8


def test_a_percentile_ends_at_the_edge_of_the_bin_that_reaches_it() -> None:
    """Of 20,000 values one at either end is a share of 0.00005 and left out; ten are not."""
    parts = [torch.full((n,), x) for n, x in ((1, -100.0), (10, -1.0), (19_978, 0.5), (10, 2.0), (1, 100.0))]
    histogram = filled(torch.cat(parts))
    low, high = ranges.percentile(histogram, 0, 255, False)
    width = histogram.width
    assert low == pytest.approx(math.floor(-1 / width) * width)
    assert high == pytest.approx((math.floor(2 / width) + 1) * width)


def test_a_percentile_never_ends_beyond_what_was_seen() -> None:
    histogram = filled(torch.tensor([-1.0, 0.25, 3.0]))
    assert ranges.percentile(histogram, 0, 255, False) == (-1, 3)


@pytest.mark.parametrize(
    ("counts", "low", "high", "levels", "expected"),
    [
        # Both ends clipped: 3 of 10 values in the first bin and 7 in the last, of which 2 and 3 were there.
        ([1, 2, 3, 4], -0.5, 0.5, 2, 0.3 * math.log(0.3 / 0.4) + 0.7 * math.log(0.7 / 0.6)),
        # Pairs share a level: 1 and 3 become 2 and 2; an empty bin stays empty.
        ([1, 3, 0, 4], -1.0, 1.0, 2, 0.125 * math.log(0.5) + 0.375 * math.log(1.5)),
        # As many levels as bins lose nothing.
        ([1, 3, 2, 4], -0.75, 0.75, 4, 0.0),
        # Bounds belong to the range.
        ([1, 2, 3, 4], -0.25, 0.75, 3, 0.3 * math.log(0.3 / (2 / 9)) + 0.3 * math.log(0.9) + 0.4 * math.log(0.9)),
        ([1, 2, 3, 4], 0.0, 0.5, 2, math.inf),  # of one bin
        ([1, 2, 3, 4], -0.25, 0.25, 2, 0.3 * math.log(0.3 / 0.4) + 0.7 * math.log(0.7 / 0.6)),  # of two
    ],
)
def test_the_divergence_of_four_bins(counts: list[int], low: float, high: float, levels: int, expected: float) -> None:
    centers, ends = torch.tensor([-0.75, -0.25, 0.25, 0.75]).double(), torch.tensor([low, high]).double()
    found = ranges._divergence(centers, torch.tensor(counts).double(), ends[0], ends[1], levels)
    assert float(found) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("quant_min", "quant_max"), [(0, 15), (-8, 7)])
def test_entropy_looks_at_as_many_levels_as_there_are_integers_and_not_at_zeros(
    quant_min: int, quant_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    without = ranges.entropy(filled(values), quant_min, quant_max, False)
    assert ranges.entropy(filled(values, torch.zeros(9000)), quant_min, quant_max, False) == without
    seen = []

    def divergence(centers: Tensor, counts: Tensor, low: Tensor, high: Tensor, levels: int) -> Tensor:
        seen.append((levels, float(counts.sum())))
        return high - low

    monkeypatch.setattr(ranges, "_divergence", divergence)
    ranges.entropy(filled(values, torch.zeros(9000)), quant_min, quant_max, False)
    assert set(seen) == {(16, 3000.0)}


def test_the_error_of_a_range_is_that_of_rounding_every_value_to_it() -> None:
    values = torch.randn(500, generator=torch.Generator().manual_seed(0))
    histogram = filled(values)
    lows, highs = torch.tensor([-1.0, -2.0]).double(), torch.tensor([2.0, 1.0]).double()
    found = ranges._squared_error(histogram, lows, highs, 0, 15, False)
    for error, low, high in zip(found.tolist(), lows.tolist(), highs.tolist(), strict=True):
        scale = (high - low) / 15
        rounded = torch.fake_quantize_per_tensor_affine(values, scale, round(-low / scale), 0, 15)
        assert error == pytest.approx(float((rounded - values).square().sum()), rel=0.01)


@pytest.mark.parametrize(
    ("low", "high", "quant_min", "quant_max", "symmetric", "scale", "zero"),
    [
        (-1.0, 3.0, 0, 255, False, 4 / 255, 64),
        (-1.0, 3.0, -128, 127, False, 4 / 255, -64),
        (1.0, 3.0, 0, 255, False, 3 / 255, 0),
        (-3.0, -1.0, -128, 127, False, 3 / 255, 127),
        (-1.0, 3.0, -128, 127, True, 3 / 127, 0),
        (-3.0, 1.0, -128, 127, True, 3 / 128, 0),
        (-3.0, 1.0, -127, 127, True, 3 / 127, 0),
        (-1.0, 3.0, 0, 255, True, 3 / 127, 128),
        (-3.0, 1.0, 0, 255, True, 3 / 128, 128),
        (0.0, 3.0, 0, 255, True, 3 / 255, 0),
        (0.0, 3.0, -128, 127, True, 3 / 127, 0),
        (1.0, 3.0, 0, 15, True, 3 / 15, 0),
        (0.0, 0.0, 0, 255, False, 1e-12, 0),
        (0.0, 0.0, -128, 127, True, 1e-12, 0),
    ],
)
def test_scale_and_zero_point_of_a_range(
    low: float, high: float, quant_min: int, quant_max: int, symmetric: bool, scale: float, zero: int
) -> None:
    found = affine.parameters(torch.tensor(low), torch.tensor(high), quant_min, quant_max, symmetric)
    assert float(found[0]) == pytest.approx(scale)
    assert (int(found[1]), found[0].dtype, found[1].dtype) == (zero, torch.float32, torch.int64)


class Norms(nn.Module):
    """Batch norm over rows, one that keeps no statistics, and one over images."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.own = nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False)
        self.images = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.images(self.own(self.rows(x))[:, :, None, None] * torch.arange(4.0).view(2, 2))
        return y


def test_statistics_are_those_of_every_norm_s_input_and_unbiased() -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1
    model = Norms().eval()
    graph = capture(model, (x,))
    assert reestimate(graph, (x,)) == 2
    torch.testing.assert_close(graph.get_buffer("rows.running_mean"), x.mean(0))
    torch.testing.assert_close(graph.get_buffer("rows.running_var"), x.var(0))
    with torch.no_grad():
        inputs = model.own((x - x.mean(0)) / (x.var(0) + 1e-5).sqrt())[:, :, None, None] * torch.arange(4.0).view(2, 2)
    flat = inputs.permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(graph.get_buffer("images.running_mean"), flat.mean(1))
    torch.testing.assert_close(graph.get_buffer("images.running_var"), flat.var(1))
