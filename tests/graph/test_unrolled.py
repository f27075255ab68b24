"""Integer networks written out, stored and read again: the same integers."""

from pathlib import Path

import numpy as np
import pytest

from hasten.graph.integer import Convolution, Dense, IntegerNet, Rescale, bits_of
from hasten.graph.unrolled import written_out

RNG = np.random.default_rng(0)


def convolution(
    groups: int, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> IntegerNet:
    weight = RNG.integers(-9, 9, (4, 6 // groups, 2, 3))
    rescale = Rescale(RNG.integers(1, 900, 4), 12, 5, -128, 127)
    layer = Convolution(weight, RNG.integers(-99, 99, 4), rescale, (6, 7, 8), stride, padding, dilation, groups, 3)
    size = 4 * layer.out_size[0] * layer.out_size[1]
    last = Dense(RNG.integers(-9, 9, (3, size)), RNG.integers(-99, 99, 3), None, np.zeros(3, np.int64))
    return IntegerNet(0.5, 3, -128, 127, (layer, last), np.array([0.1, 0.2, 0.4]), 7)


NETS = [
    convolution(1, (1, 1), (0, 0), (1, 1)),
    convolution(2, (2, 1), (1, 2), (1, 2)),
    convolution(2, (3, 2), (0, 1), (2, 1)),
]


@pytest.mark.parametrize("net", NETS)
def test_a_convolution_written_out_is_the_same_matrix(net: IntegerNet) -> None:
    q = RNG.integers(-128, 128, (5, 6 * 7 * 8))
    matrices = written_out(net)
    assert all(isinstance(layer, Dense) for layer in matrices.layers)
    assert np.ptp(net.run(q)) > 0
    np.testing.assert_array_equal(matrices.run(q), net.run(q))
    first = matrices.layers[0]
    assert isinstance(first, Dense)
    high, wide = net.layers[0].out_size  # type: ignore[union-attr]
    np.testing.assert_array_equal(first.pixel, list(range(high * wide)) * 4)


@pytest.mark.parametrize("net", [*NETS, written_out(NETS[1])])
def test_what_is_stored_is_read_again(net: IntegerNet, tmp_path: Path) -> None:
    net.save(tmp_path)
    read = IntegerNet.load(tmp_path)
    x = RNG.normal(size=(5, 6, 7, 8))
    np.testing.assert_array_equal(read.quantize(x), net.quantize(x))
    q = net.quantize(x)
    np.testing.assert_array_equal(read.run(q), net.run(q))
    np.testing.assert_array_equal(read.dequantize(read.run(q)), net.dequantize(net.run(q)))
    assert read.ends == net.ends
    assert read.products == net.products


def test_inputs_become_integers_and_outputs_floats() -> None:
    net = NETS[0]
    x = np.array([[-1000.0, -0.5, 0.2, 0.25, 0.75, 1000.0]])
    np.testing.assert_array_equal(net.quantize(x), [[-128, 2, 3, 3, 5, 127]])
    np.testing.assert_allclose(net.dequantize(np.array([[7, 8, 5]])), [[0, 0.2, -0.8]], rtol=1e-6)
    assert net.ends == {
        "input_bits": 8,
        "input_scale": 0.5,
        "input_zero_point": 3,
        "input_low": -128,
        "input_high": 127,
        "output_zero_point": 7,
    }


@pytest.mark.parametrize(
    ("low", "high", "bits"),
    [(0, 0, (0, 0)), (0, 255, (0, 8)), (-128, 127, (1, 7)), (-129, 127, (1, 8)), (-1, 4, (1, 3))],
)
def test_bits(low: int, high: int, bits: tuple[int, int]) -> None:
    assert bits_of(low, high) == bits


def test_products_are_those_by_weights_that_are_not_zero() -> None:
    weight = np.zeros((2, 1, 2, 2), np.int64)
    weight[0, 0, 0, 0] = weight[1, 0, 1, 1] = 4
    layer = Convolution(weight, np.zeros(2, np.int64), None, (1, 5, 4), (1, 1), (0, 0), (1, 1), 1, 0)
    assert layer.out_size == (4, 3)
    assert layer.products == 2 * 12
    assert Dense(np.array([[1, 0], [0, 0], [3, 4]]), np.zeros(3), None, np.zeros(3)).products == 3
