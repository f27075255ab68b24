import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.errors import InvalidInput
from hasten.quantization import affine, ranges
from hasten.quantization.histogram import Histogram
from hasten.quantization.observers import OBSERVERS, MovingAverage, PerChannelWeight
from hasten.quantization.placement import OBSERVER_NAMES
from hasten.quantization.ranges import METHODS

FINITE = st.floats(-1e6, 1e6, width=32)


def filled(*batches: torch.Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(FINITE, min_size=1, max_size=20), min_size=1, max_size=5))
def test_a_histogram_counts_everything_once_in_flat_memory(batches: list[list[float]]) -> None:
    histogram = filled(*(torch.tensor(batch) for batch in batches))
    values = torch.tensor([x for batch in batches for x in batch])
    assert histogram.counts.sum() == len(values)
    assert (histogram.low, histogram.high) == (float(values.min()), float(values.max()))
    assert histogram.counts.shape == Histogram().counts.shape
    assert histogram.zeros == (values == 0).sum()


def test_a_histogram_that_grew_equals_one_that_had_the_width_at_once() -> None:
    torch.manual_seed(0)
    small, large = torch.randn(1000), torch.randn(1000) * 37
    grown = filled(small, large)
    at_once = Histogram()
    at_once.width = grown.width
    at_once.add(torch.cat([small, large]))
    # Values on an edge may fall to either side of it when computed with another width.
    assert (grown.counts - at_once.counts).abs().sum() <= 4


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("values", [torch.zeros(9), torch.full((9,), 3.0), torch.full((9,), -2.0)])
def test_constant_tensors_are_covered(method: str, values: torch.Tensor) -> None:
    low, high = METHODS[method](filled(values), 0, 255, False)
    scale, zero = affine.parameters(torch.tensor(low), torch.tensor(high), 0, 255, False)
    rounded = affine.dequantize(affine.quantize(values, scale, zero, 0, 255), scale, zero)
    torch.testing.assert_close(rounded, values, rtol=0.25, atol=1e-6)


def test_mse_has_less_error_than_min_max_where_an_outlier_spoils_the_range() -> None:
    torch.manual_seed(0)
    values = torch.cat([torch.randn(100_000), torch.tensor([60.0])])

    def error(method: str, bits: int) -> float:
        low, high = METHODS[method](filled(values), 0, 2**bits - 1, False)
        scale, zero = affine.parameters(torch.tensor(low), torch.tensor(high), 0, 2**bits - 1, False)
        rounded = affine.dequantize(affine.quantize(values, scale, zero, 0, 2**bits - 1), scale, zero)
        return float((rounded - values).square().mean())

    assert error("mse", 4) < error("min_max", 4) / 4
    assert error("entropy", 4) < error("min_max", 4) / 4


def test_percentile_leaves_out_the_share_it_names() -> None:
    values = torch.linspace(-1, 1, 100_000)
    values[-1] = 500.0
    low, high = METHODS["percentile"](filled(values), 0, 255, False)
    assert high < 2
    assert low == pytest.approx(-1, abs=0.3)


def test_the_moving_average_forgets() -> None:
    observer = MovingAverage(torch.uint8, 0, 255, torch.per_tensor_affine, momentum=0.5)
    for high in (8.0, 0.0, 0.0):
        observer(torch.tensor([0.0, high]))
    assert observer.extremes is not None
    assert observer.extremes.tolist() == [0, 2]


def test_the_names_stated_without_torch_are_the_observers() -> None:
    assert set(OBSERVER_NAMES) == set(OBSERVERS)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(InvalidInput, match="must be finite"):
        Histogram().add(torch.tensor([1.0, value]))


def test_ranges_of_weights_go_where_the_weights_go() -> None:
    watching = PerChannelWeight(torch.int8, -127, 127, torch.per_channel_symmetric, 0)
    watching(torch.randn(3, 4))
    assert {name for name, _ in watching.named_buffers()} >= {"low", "high", "smallest_scale"}
    assert not watching.state_dict()
    watching.to("meta")
    assert watching.calculate_qparams()[0].device.type == "meta"


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (lambda low, high: torch.maximum((low + 0.5).abs(), (high - 0.5).abs()), (-0.5, 0.5)),  # only both together
        (lambda low, high: (low + 0.3).abs() + (high - 0.7).abs(), (-0.3, 0.7)),
        (lambda low, high: (low + 0.3).abs(), (-0.3, 0.3)),
        (lambda low, high: 0 * low, (-1.0, 1.0)),  # ties keep all of it
    ],
)
def test_the_search_moves_both_ends_and_each(
    cost: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], expected: tuple[float, float]
) -> None:
    found = ranges._search(filled(torch.tensor([-1.0, 1.0])), cost)
    assert found == pytest.approx(expected, abs=0.02)


def test_one_sided_ranges_stay_one_sided() -> None:
    low, high = ranges._search(filled(torch.tensor([0.0, 1.0])), lambda low, high: (high - 0.6).abs())
    assert (low, high) == pytest.approx((0.0, 0.6), abs=0.02)
