import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.errors import InvalidInput
from hasten.quantization import affine, linear, logarithmic
from hasten.quantization.weights import rounder

BITS = st.sampled_from([2, 3, 4, 6, 8])
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=6)


def tensors(low: float = -1e4, high: float = 1e4) -> st.SearchStrategy[Tensor]:
    return hnp.arrays(np.float32, SHAPES, elements=st.floats(low, high, width=32)).map(torch.from_numpy)


@settings(max_examples=60, deadline=None)
@given(tensors(), BITS, st.booleans(), st.sampled_from(["tensor", "channel"]))
def test_a_round_trip_is_off_by_half_a_step_at_most(x: Tensor, bits: int, symmetric: bool, granularity: str) -> None:
    found = linear.quantize(x, bits, symmetric=symmetric, granularity=granularity)
    error = (found.dequantize() - x).abs().reshape(found.integers.shape)
    # An asymmetric zero point is rounded too, so the ends of the range may be cut by half a step more.
    steps = 0.5 if symmetric else 1.0
    assert (error <= steps * found.scale * (1 + 1e-5) + 1e-6 * x.abs().max()).all()


@settings(max_examples=60, deadline=None)
@given(tensors(), BITS, st.booleans())
def test_rounding_is_monotone_saturates_and_represents_zero(x: Tensor, bits: int, symmetric: bool) -> None:
    found = linear.quantize(x, bits, symmetric=symmetric, granularity="tensor")
    order = x.flatten().argsort()
    integers = found.integers.flatten()[order].long()
    assert (integers.diff() >= 0).all()
    top = 2 ** (bits - 1) - 1
    low, high = (-top, top) if symmetric else (0, 2**bits - 1)
    assert integers.min() >= low
    assert integers.max() <= high
    beyond = affine.quantize(torch.tensor([-1e9, 1e9]), found.scale[0], found.zero_point[0], low, high)
    assert beyond.tolist() == [low, high]
    zero = affine.quantize(torch.zeros(1), found.scale[0], found.zero_point[0], low, high)
    assert affine.dequantize(zero, found.scale[0], found.zero_point[0]).item() == 0


@settings(max_examples=30, deadline=None)
@given(tensors(), BITS)
def test_integers_survive_a_second_round_trip(x: Tensor, bits: int) -> None:
    first = linear.quantize(x, bits, symmetric=True, granularity="channel").dequantize()
    second = linear.quantize(first, bits, symmetric=True, granularity="channel").dequantize()
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("constant", [0.0, 3.5, -2.0, 1e-30])
@pytest.mark.parametrize("symmetric", [True, False])
def test_constant_tensors_come_back(constant: float, symmetric: bool) -> None:
    x = torch.full((3, 4), constant)
    found = linear.quantize(x, 8, symmetric=symmetric, granularity="channel").dequantize()
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-12)


def test_smaller_groups_have_smaller_errors_where_ranges_differ() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 128) * torch.logspace(-2, 0, 128)

    def error(granularity: str, group: int = 32) -> float:
        found = linear.quantize(x, 4, symmetric=True, granularity=granularity, group=group).dequantize()
        return float((found - x).square().mean())

    assert error("group", 16) < error("group", 64) < error("channel") <= error("tensor")


@settings(max_examples=60, deadline=None)
@given(tensors(), BITS, st.sampled_from(["2", "sqrt2"]), st.booleans())
def test_a_power_is_off_by_half_a_power_at_most(x: Tensor, bits: int, base: str, per_channel: bool) -> None:
    found = logarithmic.quantize(x, bits, base=base, per_channel=per_channel)
    result, kept = found.dequantize(), found.sign != 0
    limit = math.sqrt(found.base) * (1 + 1e-5)
    ratio = (result[kept] / x[kept]).double()
    assert ((ratio <= limit) & (ratio >= 1 / limit)).all()
    # What became zero lies below the smallest magnitude.
    levels = 2 ** (bits - 1) - 1
    top = found.top.view(-1, *[1] * (x.ndim - 1)).double().expand(x.shape)
    assert (x[~kept].double().abs() <= found.base ** (top[~kept] - levels + 0.5) * (1 + 1e-6)).all()


@settings(max_examples=30, deadline=None)
@given(tensors(), BITS)
def test_powers_are_odd_monotone_and_fit_their_bits(x: Tensor, bits: int) -> None:
    found = logarithmic.quantize(x, bits, per_channel=False)
    assert torch.equal(logarithmic.quantize(-x, bits, per_channel=False).dequantize(), -found.dequantize())
    order = x.flatten().argsort()
    assert (found.dequantize().flatten()[order].diff() >= 0).all()
    assert found.code.max() < 2 ** (bits - 1) - 1


def test_base_two_gives_powers_of_two() -> None:
    x = torch.tensor([[1.0, 0.5, -0.26, 0.0, 0.9]])
    assert logarithmic.quantize(x, 4).dequantize().tolist() == [[1.0, 0.5, -0.25, 0.0, 1.0]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused_by_name(value: float) -> None:
    x = torch.tensor([1.0, value])
    with pytest.raises(InvalidInput, match="must be finite, but 1 of 2"):
        linear.quantize(x, 8, symmetric=True, granularity="tensor")
    with pytest.raises(InvalidInput, match="must be finite, but 1 of 2"):
        logarithmic.quantize(x, 4)


def test_arguments_outside_their_range_are_refused() -> None:
    x = torch.ones(2, 6)
    with pytest.raises(InvalidInput, match=r"`bits` must be in \[2, 8\], but got 9"):
        linear.quantize(x, 9, symmetric=True, granularity="tensor")
    with pytest.raises(InvalidInput, match="`granularity` must be one of"):
        linear.quantize(x, 8, symmetric=True, granularity="row")
    with pytest.raises(InvalidInput, match="`group` must divide the 6 weights"):
        linear.quantize(x, 8, symmetric=True, granularity="group", group=4)
    with pytest.raises(InvalidInput, match="`base` must be one of"):
        logarithmic.quantize(x, 4, base="e")
    with pytest.raises(InvalidInput, match="must hold values"):
        linear.quantize(torch.empty(0, 3), 8, symmetric=True, granularity="tensor")


@pytest.mark.parametrize("per_channel", [True, False])
def test_logarithms_are_stored_as_they_say(per_channel: bool) -> None:
    x = torch.tensor([[8.0, -4.0, 0.0], [0.5, 0.25, 0.125]])
    found = logarithmic.quantize(x, 4, per_channel=per_channel)
    assert (found.sign.dtype, found.code.dtype, found.top.dtype) == (torch.int8, torch.uint8, torch.int64)
    assert found.top.tolist() == ([3, -1] if per_channel else [3])
    assert found.sign.tolist() == [[1, -1, 0], [1, 1, 1]]
    assert found.code[found.sign != 0].tolist() == ([0, 1, 0, 1, 2] if per_channel else [0, 1, 4, 5, 6])
    assert int(found.code.max()) <= 2**3 - 2
    assert torch.equal(found.dequantize(), x)


def test_a_single_number_has_a_logarithm() -> None:
    found = logarithmic.quantize(torch.tensor(-6.0), 4)
    assert (found.top.tolist(), found.sign.item(), found.code.item()) == ([3], -1, 0)


@pytest.mark.parametrize("bits", [1, 9])
def test_widths_without_a_meaning_are_refused(bits: int) -> None:
    with pytest.raises(InvalidInput, match=rf"`bits` must be in \[2, 8\], but got {bits}\."):
        logarithmic.quantize(torch.ones(2, 2), bits)
    with pytest.raises(InvalidInput, match=rf"`bits` must be in \[2, 8\], but got {bits}\."):
        linear.quantize(torch.ones(2, 2), bits, symmetric=True, granularity="tensor")


def test_integers_use_the_whole_range_and_no_more() -> None:
    x = torch.linspace(-1, 1, 255).reshape(1, -1)
    signed = linear.quantize(x, 8, symmetric=True, granularity="tensor").integers
    assert (signed.dtype, int(signed.min()), int(signed.max())) == (torch.int8, -127, 127)
    unsigned = linear.quantize(x + 1, 8, symmetric=False, granularity="tensor")
    assert (unsigned.integers.dtype, int(unsigned.integers.min()), int(unsigned.integers.max())) == (
        torch.uint8,
        0,
        255,
    )
    assert int(unsigned.zero_point) == 0
    two = linear.quantize(x, 2, symmetric=False, granularity="tensor").integers
    assert set(two.unique().tolist()) <= {0, 1, 2, 3}
    assert int(two.max()) == 3


def test_every_block_has_a_range_of_its_own() -> None:
    x = torch.tensor([[1.0, 2.0], [10.0, 40.0]])
    assert linear.quantize(x, 8, symmetric=True, granularity="channel").scale.flatten().tolist() == pytest.approx(
        [2 / 127, 40 / 127]
    )
    alone = linear.quantize(x, 8, symmetric=True, granularity="group", group=1)
    assert torch.equal(alone.integers, torch.full((4, 1), 127, dtype=torch.int8))
    assert linear.quantize(torch.tensor(3.0), 8, symmetric=True, granularity="channel").dequantize() == pytest.approx(
        3.0
    )


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_powers_of_two_are_exact_integers_of_one_scale(bits: int) -> None:
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(bits)) * torch.logspace(-3, 3, 5)[:, None]
    weight[2] = 0
    how = rounder("power_of_two", bits, None)
    integers, scale = how.round(weight)
    assert how.top == {2: 1, 3: 4, 4: 64}[bits]
    assert int(integers.abs().max()) == how.top
    expected = logarithmic.quantize(weight, bits, base="2", per_channel=True).dequantize()
    torch.testing.assert_close(integers.float() * scale.float().reshape(-1, 1), expected, rtol=0, atol=0)
