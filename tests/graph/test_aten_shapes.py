"""Operators that move, choose or make values, and those between floats and integers, against torch."""

import itertools

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed

from aten_agrees import Case, case, check, name_of, values
from hasten.graph.aten import TABLE

aten = torch.ops.aten

X = values(2, 3, 4, 5)
ROWS = values(5, 6, seed=1)
LARGEST = 2**63 - 1

MOVED: list[Case] = [
    *(case(aten.permute.default, X, dims) for dims in ([0, 2, 3, 1], [-1, 0, 2, 1])),
    *(case(aten.transpose.int, X, *dims) for dims in ((0, 1), (-1, 1), (2, -2))),
    *(case(aten.t.default, x) for x in (ROWS, ROWS[0])),
    *(case(aten.movedim.intlist, X, *dims) for dims in (([0], [2]), ([1, -1], [0, 1]))),
    *(case(aten.unsqueeze.default, X, dim) for dim in (0, 2, -1, -3, 4)),
    *(case(aten.cat.default, [X, X[:, :, :2], X], dim) for dim in (2, -2)),
    case(aten.cat.default, [torch.empty(0), ROWS, ROWS], 1),
    case(aten.cat.default, [ROWS, ROWS[:2]]),
    *(case(aten.concat.default, [ROWS, ROWS], *dim) for dim in ((), (1,), (-1,))),
    *(case(aten.stack.default, [X, X + 1], *dim) for dim in ((), (2,), (-1,))),
    *(case(aten.flip.default, X, dims) for dims in ([0], [-1], [1, 2])),
    *(case(aten.index_select.default, X, dim, torch.tensor([2, 0, 1, 1])) for dim in (1, -1, 2)),
    *(case(operator, ROWS, diagonal) for operator in (aten.tril.default, aten.triu.default) for diagonal in (0, 2, -1)),
    *(
        case(operator, X, [6, -1, 5])
        for operator in (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
    ),
    *(case(aten.flatten.using_ints, X, *ends) for ends in ((), (1,), (1, 2), (-3, -2), (2, 2), (0, 1))),
    *(case(aten.unflatten.int, X, *into) for into in ((2, [2, 2]), (-2, [2, -1]), (3, [5, 1]), (0, [1, 2]))),
    *(case(aten.squeeze.default, x) for x in (X[:1, :, :1], X)),
    *(case(aten.squeeze.dim, X[:1, :, :1], dim) for dim in (0, 1, 2, -2)),
    *(case(aten.squeeze.dims, X[:1, :, :1], dims) for dims in ([0], [0, -2], [1, 2])),
    *(case(aten.expand.default, X[:, :1], size) for size in ([2, 3, 4, 5], [-1, 7, -1, 5], [3, 2, -1, -1, 5])),
    case(aten.expand_as.default, ROWS[:, :1], ROWS),
    *(case(aten.repeat.default, ROWS, times) for times in ([2, 1], [1, 3], [2, 1, 2])),
    *(
        case(aten.slice.Tensor, X, dim, *ends)
        for dim in (1, -1, 2)
        for ends in ((None, None), (1, LARGEST), (-2, LARGEST, 2), (0, -1), (1, 3), (0, 2, 2))
    ),
    *(case(aten.select.int, X, dim, index) for dim in (0, 1, -1, -2) for index in (0, 1, -1)),
    *(case(aten.narrow.default, X, dim, start, 2) for dim in (1, -1, 2) for start in (0, 1, -2)),
    *(
        case(aten.index.Tensor, X, indices)
        for indices in (
            [torch.tensor([1, 0])],
            [None, torch.tensor([2, 0])],
            [None, torch.tensor([[2, 0]]), torch.tensor([[3], [1]])],
        )
    ),
    *(
        case(aten.gather.default, X, dim, torch.tensor([[[[0, 1], [1, 0]]], [[[1, 1], [0, 1]]]])[: 1 + (dim % 4 > 0)])
        for dim in (0, 1, 2, -1)
    ),
    *(case(aten.split.Tensor, X, size, dim) for size in (1, 2, 3) for dim in (0, 2, -1)),
    *(case(aten.split_with_sizes.default, X, sizes, dim) for sizes, dim in (([1, 2], 1), ([2, 0, 3], -1))),
    *(case(aten.chunk.default, X, chunks, dim) for chunks in (1, 2, 3) for dim in (0, 2, -1)),
    *(case(aten.unbind.int, X, *dim) for dim in ((), (1,), (-1,))),
    *(case(aten.roll.default, X, *rest) for rest in (([3],), ([1], [2]), ([-2, 1], [3, 1]))),
    *(case(aten.diff.default, ROWS, *rest) for rest in ((), (2,), (1, 0), (2, -2))),
    *(
        case(aten.diff.default, ROWS, 1, 1, before, after)
        for before, after in ((ROWS, None), (None, ROWS), (ROWS, ROWS))
    ),
    *(
        case(aten.constant_pad_nd.default, X, pad, *value)
        for pad in ([1, 2], [0, 3, 1, 0], [-1, 2, 1, -2], [-1, -2], [0, 0, 0, -1, 2, 1], [1, 0, 2, 0, 3, 0, 0, 4])
        for value in ((), (2.5,))
    ),
    *(
        case(aten.pad.default, X, pad, mode)
        for pad in ([1, 2, 0, 3], [2, 0, 1, 1])
        for mode in ("reflect", "replicate", "circular")
    ),
    case(aten.pad.default, X, [1, 2], "constant", -3.0),
    case(aten.pad.default, X.int(), [1, 2, 3, 0], "constant", 4),
]


@pytest.mark.parametrize("made", MOVED, ids=name_of)
def test_values_that_move(made: Case) -> None:
    check(made, tolerance=0)


def test_sizes_count_from_either_end() -> None:
    x = X.numpy()
    assert [TABLE["aten.sym_size"](np, x, dim) for dim in (0, 2, -1)] == [2, 4, 5]
    assert TABLE["aten.sym_numel"](np, x) == 120


MADE: list[Case] = [
    *(case(aten.arange.start_step, *ends) for ends in ((1, 7, 2), (5, 0, -1), (0.5, 2.0, 0.25), (1, 4, 0.5))),
    *(case(aten.arange.default, end, **rest) for end in (4, 3.5) for rest in ({}, {"dtype": torch.float64})),
    case(aten.arange.start, 2, 5),
    *(case(aten.full.default, [2, 3], value) for value in (7, 2.5, True)),
    case(aten.full.default, [2], 7, dtype=torch.float64),
    *(case(aten.scalar_tensor.default, value, dtype=kind) for value in (3, 0.5) for kind in (torch.int64, None)),
    *(
        case(operator, [2, 3], dtype=kind)
        for operator in (aten.zeros.default, aten.ones.default)
        for kind in (None, torch.int32)
    ),
    *(case(aten.full_like.default, x, 3, dtype=kind) for x in (X, X.int()) for kind in (None, torch.float64)),
    *(case(aten.new_full.default, x, [3, 1], 5, dtype=kind) for x in (X, X.int()) for kind in (None, torch.float64)),
    *(
        case(operator, x, dtype=kind)
        for operator in (aten.zeros_like.default, aten.ones_like.default)
        for x in (X, X.int())
        for kind in (None, torch.bool)
    ),
    *(
        case(operator, x, [4, 1], dtype=kind)
        for operator in (aten.new_zeros.default, aten.new_ones.default)
        for x in (X, X.int())
        for kind in (None, torch.bool)
    ),
    *(
        case(operator, X)
        for operator in (aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default)
    ),
    case(aten.dropout.default, X, 0.5, False),
    *(case(aten.to.dtype, X * 9, kind) for kind in (torch.int32, torch.float64, torch.bool)),
    *(case(operator, X * 9, X.int()) for operator in (aten.to.other, aten.type_as.default)),
    *(case(aten._to_copy.default, X * 9, dtype=kind) for kind in (torch.int64, None)),
]


@pytest.mark.parametrize("made", MADE, ids=name_of)
def test_values_that_are_made(made: Case) -> None:
    check(made, tolerance=0)


ops = torch.ops.quantized_decomposed
TIES = torch.tensor([[-3.0, -0.75, -0.25, 0.25], [0.75, 1.25, 40.0, 99.0], [-40.0, 0.0, 0.5, 1.0]])
SCALES, ZEROS = torch.tensor([0.5, 0.25, 2.0]), torch.tensor([0, 3, -2])
INTEGERS = torch.tensor([[-128, -3, 0], [1, 5, 127], [9, -7, 64]], dtype=torch.int8)
QUANTIZED: list[Case] = [
    *(
        case(ops.quantize_per_tensor.default, TIES, scale, zero, low, high, kind)
        for scale, (zero, low, high, kind) in itertools.product(
            (0.5, 0.3), ((0, -128, 127, torch.int8), (-3, -20, 19, torch.int8), (100, 0, 255, torch.uint8))
        )
    ),
    *(case(ops.dequantize_per_tensor.default, INTEGERS, 0.3, zero, -128, 127, torch.int8) for zero in (0, 5)),
    *(
        case(ops.quantize_per_channel.default, x, SCALES, ZEROS, axis, -128, 127, torch.int8)
        for x, axis in ((TIES, 0), (TIES.T, 1))
    ),
    *(
        case(ops.dequantize_per_channel.default, INTEGERS, SCALES, zeros, axis, -128, 127, torch.int8)
        for axis in (0, 1)
        for zeros in (ZEROS, None)
    ),
]


@pytest.mark.parametrize("made", QUANTIZED, ids=name_of)
def test_integers_and_back(made: Case) -> None:
    check(made, tolerance=1e-7)


def test_an_axis_counts_from_either_end() -> None:
    arrays = (SCALES.numpy(), ZEROS.numpy())
    for name, x, rest in (
        ("quantize", TIES.T.numpy(), (-128, 127, np.int8)),
        ("dequantize", INTEGERS.numpy(), ()),
    ):
        operator = TABLE[f"quantized_decomposed.{name}_per_channel"]
        np.testing.assert_array_equal(operator(np, x, *arrays, -1, *rest), operator(np, x, *arrays, 1, *rest))
    shifted = TABLE["quantized_decomposed.quantize_per_channel"](np, TIES.numpy(), arrays[0], None, 0, -9, 9, np.int8)
    np.testing.assert_array_equal(shifted, [[-6, -2, 0, 0], [3, 5, 9, 9], [-9, 0, 0, 0]])
