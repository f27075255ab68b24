"""Products, convolutions, pools, norms, attention and resizing of the table against torch, argument by argument."""

import itertools

import numpy as np
import pytest
import torch

from aten_agrees import Case, case, check, name_of, values
from hasten.errors import Unsupported
from hasten.graph.aten import TABLE

aten = torch.ops.aten

LINE, IMAGE, VOLUME = values(3, 4, 11), values(3, 4, 9, 7, seed=1), values(2, 4, 5, 6, 7, seed=2)
ROWS, MATRIX = values(3, 4, seed=3), values(4, 5, seed=4)
BATCH, OTHERS = values(2, 3, 4, seed=5), values(2, 4, 5, seed=6)

PRODUCTS: list[Case] = [
    *(
        case(aten.matmul.default, a, b)
        for a, b in ((ROWS, MATRIX), (BATCH, MATRIX), (ROWS[0], MATRIX), (BATCH, OTHERS))
    ),
    case(aten.mm.default, ROWS, MATRIX),
    case(aten.bmm.default, BATCH, OTHERS),
    *(case(aten.linear.default, x, MATRIX.T, *bias) for x in (ROWS, BATCH) for bias in ((), (values(5),))),
    *(
        case(aten.addmm.default, a, ROWS, MATRIX, beta=beta, alpha=alpha)
        for a, beta, alpha in itertools.product((values(5), values(3, 5)), (1, 2, 0.5), (1, 2, 3))
    ),
    *(case(aten.baddbmm.default, values(2, 3, 5), BATCH, OTHERS, beta=b, alpha=a) for b in (1, 2) for a in (1, 0.5)),
    case(aten.einsum.default, "bij,bjk->bki", [BATCH, OTHERS]),
    case(aten.embedding.default, MATRIX, torch.tensor([[0, 3], [2, 1]])),
]


@pytest.mark.parametrize("made", PRODUCTS, ids=name_of)
def test_products(made: Case) -> None:
    check(made)


def _convolved() -> list[Case]:
    made = []
    for operator, x, kernels in (
        (aten.conv1d, LINE, ([3], [2])),
        (aten.conv2d, IMAGE, ([3, 2], [1, 4])),
        (aten.conv3d, VOLUME, ([1, 2, 3],)),
    ):
        rank = x.ndim - 2
        bias = values(6, seed=8)
        for kernel, groups in itertools.product(kernels, (1, 2)):
            weight = values(6, 4 // groups, *kernel, seed=7)
            strides, pads, dilations = [2, 1, 3][:rank], [1, 2, 0][:rank], [1, 2, 1][:rank]
            made += [
                case(operator.default, x, weight, bias, strides, pads, dilations, groups),
                case(operator.default, x, weight, None, strides[::-1], pads[::-1], dilations[::-1], groups),
                case(operator.default, x, weight, None, [2], [1], [1], groups),
                case(operator.padding, x, weight, bias, [1], "same", dilations, groups),
                case(operator.padding, x, weight, None, strides, "valid", [1], groups),
            ]
    return made


def _transposed() -> list[Case]:
    made = []
    for operator, x, kernels in (
        (aten.conv_transpose1d.default, LINE, ([3], [1])),
        (aten.conv_transpose2d.input, IMAGE, ([3, 2], [2, 4])),
    ):
        rank = x.ndim - 2
        for kernel, groups in itertools.product(kernels, (1, 2)):
            weight, bias = values(4, 3, *kernel, seed=9), values(3 * groups, seed=8)
            made += [
                case(operator, x, weight, bias, [2, 3][:rank], [1, 0][:rank], [1, 2][:rank], groups, [1, 2][:rank]),
                case(operator, x, weight, None, [3, 2][:rank], [0, 1][:rank], [0, 1][:rank], groups, [2, 1][:rank]),
                case(operator, x, weight, None, [2], [0], [1], groups, [1]),
            ]
    return made


CONVOLUTIONS: list[Case] = [
    *_convolved(),
    *_transposed(),
    *(
        case(aten.convolution.default, IMAGE, weight, None, [2, 1], [1, 0], [1, 1], transposed, extra, 2)
        for weight, transposed, extra in ((values(6, 2, 3, 3), False, [0, 0]), (values(4, 3, 3, 3), True, [1, 0]))
    ),
]


@pytest.mark.parametrize("made", CONVOLUTIONS, ids=name_of)
def test_convolutions(made: Case) -> None:
    check(made)


POOLS: list[Case] = [
    *(
        case(aten.max_pool1d.default, LINE, *rest)
        for rest in (([3],), ([3], [2], [1], [2]), ([2], [3], [0], [1], True))
    ),
    *(
        case(aten.max_pool2d.default, IMAGE, [3, 2], stride, padding, dilation, ceil)
        for stride, padding, dilation, ceil in itertools.product(
            ([], [2, 3], [1, 2]), ([0], [1, 0]), ([1], [2, 1]), (False, True)
        )
    ),
    # The last window may begin in the padding before the input ends, or just not.
    *(
        case(aten.max_pool2d.default, values(1, 1, size, size), [kernel], [stride], [padding], [1], True)
        for size, kernel, stride, padding in itertools.product((4, 5, 6, 7), (2, 3), (1, 2, 3, 4), (0, 1))
    ),
    case(aten.max_pool2d.default, -IMAGE.abs(), [3], [2], [1]),
    case(aten.max_pool2d.default, -(IMAGE.abs() * 9).int() - 1, [3], [2], [1]),
    *(case(aten.avg_pool1d.default, LINE, *rest) for rest in (([3],), ([3], [2], [1]), ([3], [2], [1], False, False))),
    *(
        case(aten.avg_pool2d.default, IMAGE, [3, 2], stride, padding, False, counted, divisor)
        for stride, padding, counted, divisor in itertools.product(
            ([], [2, 1]), ([0], [1, 0], [1, 1]), (False, True), (None, 5)
        )
    ),
    *(case(aten.adaptive_avg_pool1d.default, LINE, [bins]) for bins in (1, 3, 4, 11, 13)),
    *(
        case(aten.adaptive_avg_pool2d.default, IMAGE, size)
        for size in ([1, 1], [3, 7], [4, 5], [9, 2], [1, 3], [12, 1])
    ),
]


@pytest.mark.parametrize("made", POOLS, ids=name_of)
def test_pools(made: Case) -> None:
    check(made)


def test_averages_over_windows_that_end_outside_are_refused() -> None:
    with pytest.raises(Unsupported, match="ceil_mode=False"):
        TABLE["aten.avg_pool2d"](np, IMAGE.numpy(), [2], ceil_mode=True)


WEIGHT, BIAS = values(4, seed=10), values(4, seed=11)
SPREAD = values(9, 7, seed=12)
NORMS: list[Case] = [
    *(
        case(aten.layer_norm.default, IMAGE, [9, 7], weight, bias, eps)
        for weight, bias, eps in ((None, None, 1e-5), (SPREAD, None, 0.5), (SPREAD, SPREAD.flip(0), 1e-3))
    ),
    case(aten.layer_norm.default, ROWS, [4], WEIGHT, BIAS, 0.1),
    case(aten.native_layer_norm.default, IMAGE, [9, 7], SPREAD, SPREAD.flip(1), 0.3),
    *(case(aten.rms_norm.default, IMAGE, [7], weight, eps) for weight in (None, SPREAD[0]) for eps in (None, 0.5)),
    case(aten.rms_norm.default, IMAGE, [9, 7], SPREAD, 0.5),
    *(
        case(aten.group_norm.default, x, groups, weight, bias, 0.5)
        for x in (LINE, IMAGE, VOLUME)
        for groups in (1, 2, 4)
        for weight, bias in ((None, None), (WEIGHT, BIAS))
    ),
    *(
        case(aten.batch_norm.default, x, *affine, BIAS / 2, WEIGHT.abs(), False, 0.1, 0.3, False)
        for x in (values(3, 4), LINE, IMAGE)
        for affine in ((None, None), (WEIGHT, BIAS), (WEIGHT, None))
    ),
    case(aten._native_batch_norm_legit_no_training.default, IMAGE, WEIGHT, BIAS, BIAS / 2, WEIGHT.abs(), 0.1, 0.3),
]


@pytest.mark.parametrize("made", NORMS, ids=name_of)
def test_norms(made: Case) -> None:
    check(made, outputs=1)


def test_batch_norm_in_training_is_refused() -> None:
    x, one = IMAGE.numpy(), np.ones(4, np.float32)
    with pytest.raises(Unsupported, match="eval mode"):
        TABLE["aten.batch_norm"](np, x, one, one, one, one, training=True)


QUERY, KEY, VALUE = values(2, 4, 5, 8), values(2, 4, 6, 8, seed=1), values(2, 4, 6, 3, seed=2)
MASK = values(5, 6, seed=3)
ATTENTION: list[Case] = (
    [
        case(aten.scaled_dot_product_attention.default, QUERY, KEY, VALUE, mask, 0.0, causal, scale=scale)
        for mask, causal in ((None, False), (None, True), (MASK, False), (MASK > -1, False))
        for scale in (None, 0.7)
    ]
    + [
        case(aten.scaled_dot_product_attention.default, QUERY, KEY[:, :heads], VALUE[:, :heads], enable_gqa=True)
        for heads in (1, 2, 4)
    ]
    + [
        # Without heads, and with more dimensions than one before the tokens.
        case(aten.scaled_dot_product_attention.default, *(x[index] for x in (QUERY, KEY, VALUE)), None, 0.0, causal)
        for index in (0, (slice(None), 0), None)
        for causal in (False, True)
    ]
)


@pytest.mark.parametrize("made", ATTENTION, ids=name_of)
def test_attention(made: Case) -> None:
    check(made)


SMALL = values(2, 4, 6, 5, seed=13)
RESIZED: list[Case] = [
    *(case(aten.upsample_nearest2d.vec, SMALL, size, None) for size in ([6, 10], [3, 7], [13, 4], [1, 1])),
    *(case(aten.upsample_nearest2d.vec, SMALL, None, list(f)) for f in ((2.0, 3.0), (1.7, 0.6), (1.0, 2.5))),
    case(aten.upsample_nearest2d.default, SMALL, [12, 9]),
    *(
        case(aten.upsample_bilinear2d.vec, SMALL, size, c, None)
        for size in ([6, 10], [3, 7], [1, 9], [2, 2])
        for c in (False, True)
    ),
    *(case(aten.upsample_bilinear2d.vec, SMALL, None, c, [1.7, 0.6]) for c in (False, True)),
    case(aten.upsample_bilinear2d.default, SMALL, [12, 9], False),
    *(case(aten.pixel_shuffle.default, values(2, 18, 2, 3), r) for r in (1, 3)),
]


@pytest.mark.parametrize("made", RESIZED, ids=name_of)
def test_resizing(made: Case) -> None:
    check(made)
