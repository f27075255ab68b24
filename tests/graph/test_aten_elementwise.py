"""Arithmetic, comparisons, activations and reductions of the table against torch, argument by argument."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from aten_agrees import Case, case, check, name_of, values
from hasten.graph.aten import TABLE

aten = torch.ops.aten

X, Y, SMALL = values(3, 4), values(3, 4, seed=1), values(4, seed=2)
IMAGE = values(2, 3, 4, 5, seed=3)
WIDE = torch.tensor(
    [-90.0, -21.0, -7.5, -3.0, -2.9, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 2.9, 3.0, 5.9, 6.1, 19.0, 21.0, 90.0]
)
NUMBERS = torch.tensor([[-7, -2, -1, 0], [1, 2, 3, 9]])
POSITIVE = X.abs() + 0.1
SIDES = X > 0

BINARY: list[Case] = [
    *(
        case(operator, a, b, alpha=alpha)
        for operator in (aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor)
        for a, b, alpha in ((X, Y, 1), (X, SMALL, 3), (X, Y, -0.5), (NUMBERS, NUMBERS.flip(1), 2), (X, X.int(), 2))
    ),
    *(case(operator, X, 1.5, alpha) for operator in (aten.add.Scalar, aten.rsub.Scalar) for alpha in (1, 2)),
    *(case(operator, NUMBERS, 2.5) for operator in (aten.add.Scalar, aten.mul.Scalar, aten.rsub.Scalar)),
    *(case(operator, NUMBERS.int(), 2) for operator in (aten.add.Scalar, aten.mul.Scalar, aten.rsub.Scalar)),
    *(case(aten.add.Scalar, SIDES, number) for number in (2, True)),
    case(aten.mul.Scalar, SIDES, 3),
    case(aten.add.Tensor, SIDES, SIDES.flip(0)),
    *(case(aten.div.Tensor, a, b) for a, b in ((X, Y), (NUMBERS, NUMBERS.abs() + 2), (NUMBERS, X[:2]))),
    *(
        case(aten.div.Tensor_mode, a, b, rounding_mode=mode)
        for mode in (None, "floor", "trunc")
        for a, b in ((X * 9, Y), (-X * 9, torch.tensor(2.0)))
    ),
    case(aten.div.Tensor_mode, NUMBERS, torch.tensor([[2, 3, 4, 5]]), rounding_mode="floor"),
    case(aten.div.Scalar_mode, X * 9, -2, rounding_mode="trunc"),
    *(case(aten.div.Scalar, a, b) for a in (X, NUMBERS, SIDES) for b in (4, 0.5)),
    *(case(aten.floor_divide.default, a, b) for a, b in ((X * 9, Y), (NUMBERS, torch.tensor([[2, -3, 4, 5]])))),
    *(case(aten.floor_divide.Scalar, a, b) for a in (X * 9, NUMBERS) for b in (2, -3)),
    *(case(aten.remainder.Scalar, a, b) for a in (X * 9, NUMBERS) for b in (2, -3)),
    *(case(aten.pow.Tensor_Scalar, POSITIVE, power) for power in (2, 2.0, 3, 0.5, -1.0)),
    *(case(aten.pow.Tensor_Scalar, NUMBERS, power) for power in (2, 3)),
    case(aten.pow.Tensor_Tensor, POSITIVE, Y),
    case(aten.atan2.default, X, Y),
    *(case(operator, X, Y) for operator in (aten.maximum.default, aten.minimum.default)),
    *(
        case(operator, NUMBERS, NUMBERS.flip(0))
        for operator in (aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.bitwise_xor.Tensor)
    ),
    *(case(operator, SIDES, SIDES.flip(1)) for operator in (aten.__and__.Tensor, aten.__or__.Tensor)),
    *(case(operator, NUMBERS, NUMBERS - 1) for operator in (aten.logical_and.default, aten.logical_or.default)),
    *(
        case(getattr(aten, name).Scalar, a, b)
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
        for a, b in ((NUMBERS, 1), (NUMBERS, 0.5), (X, 0))
    ),
    *(case(getattr(aten, name).Tensor, NUMBERS, NUMBERS.abs()) for name in ("eq", "ne", "lt", "le", "gt", "ge")),
    *(case(aten.where.self, SIDES, a, b) for a, b in ((X, Y), (X, X.int()), (torch.tensor(3), X))),
    *(case(aten.masked_fill.Scalar, a, mask, 2) for a, mask in ((X, SIDES), (NUMBERS, NUMBERS > 0), (X, SIDES[:1]))),
    case(aten.masked_fill.Tensor, X, SIDES, torch.tensor(-math.inf)),
]


@pytest.mark.parametrize("made", BINARY, ids=name_of)
def test_two_operands(made: Case) -> None:
    check(made)


@pytest.mark.parametrize("operator", ["add", "mul", "maximum"])
def test_operands_of_two_types(operator: str) -> None:
    overload = getattr(aten, operator)
    overload = overload.Tensor if "Tensor" in overload.overloads() else overload.default
    kinds = (torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64)
    matrix, row, number = NUMBERS.abs(), NUMBERS[1], NUMBERS[1, 1]
    for a, b in itertools.product(kinds, repeat=2):
        for left, right in ((matrix, row), (row, number), (number, row), (number, number)):
            check(case(overload, left.to(a), right.to(b)))


UNARY = [
    "abs",
    "bitwise_not",
    "ceil",
    "cos",
    "erf",
    "exp",
    "expm1",
    "floor",
    "hardsigmoid",
    "hardswish",
    "isinf",
    "isnan",
    "log",
    "log1p",
    "log2",
    "logical_not",
    "mish",
    "neg",
    "reciprocal",
    "relu",
    "relu6",
    "round",
    "rsqrt",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "sqrt",
    "tanh",
    "trunc",
]
WITHOUT_NEGATIVES = ("log", "log1p", "log2", "rsqrt", "sqrt", "reciprocal")


@pytest.mark.parametrize("name", UNARY)
def test_one_operand(name: str) -> None:
    x = WIDE.abs() + 0.25 if name in WITHOUT_NEGATIVES else WIDE.clamp(-30, 30)
    if name == "bitwise_not":
        x = NUMBERS
    check(case(getattr(aten, name).default, x))
    if name in ("isinf", "isnan"):
        check(case(getattr(aten, name).default, torch.tensor([math.inf, -math.inf, math.nan, 0.0])))


@pytest.mark.parametrize("name", ["sqrt", "exp", "log1p", "rsqrt", "sigmoid", "tanh", "reciprocal"])
def test_functions_of_integers_are_float32(name: str) -> None:
    check(case(getattr(aten, name).default, torch.tensor([1, 2, 5])))


def test_a_sigmoid_does_not_overflow() -> None:
    found = TABLE["aten.sigmoid"](np, np.array([-1e4, 0, 1e4], np.float32))
    np.testing.assert_array_equal(found, np.array([0, 0.5, 1], np.float32))


ACTIVATIONS: list[Case] = [
    *(case(aten.clamp.default, WIDE, *ends) for ends in ((-1, None), (None, 1), (-1.5, 2.5), (2, -2))),
    *(case(aten.clip.default, NUMBERS, *ends) for ends in ((-1, None), (None, 1), (-1, 2), (-0.5, 2.5))),
    *(case(aten.clamp_min.default, x, 1) for x in (WIDE, NUMBERS)),
    *(case(aten.clamp_max.default, x, 1) for x in (WIDE, NUMBERS)),
    *(case(aten.hardtanh.default, WIDE, *ends) for ends in ((), (-2, 1), (-0.5, 0.75))),
    *(case(aten.softplus.default, WIDE, *rest) for rest in ((), (2,), (0.5, 3.0), (2, 3))),
    *(case(aten.gelu.default, WIDE.clamp(-9, 9), approximate=kind) for kind in ("none", "tanh")),
    *(case(aten.elu.default, WIDE, *rest) for rest in ((), (0.5,), (1.5, 2.0), (1.5, 0.5, 0.25))),
    *(case(aten.leaky_relu.default, WIDE, *rest) for rest in ((), (0.3,), (-0.2,))),
    *(case(aten.prelu.default, x, weight) for x in (X, IMAGE, values(3, 4, 5)) for weight in (torch.tensor([0.3]),)),
    case(aten.prelu.default, X, SMALL),
    case(aten.prelu.default, IMAGE, torch.tensor([0.1, -0.2, 0.3])),
    case(aten.prelu.default, SMALL, torch.tensor([0.3])),
]


@pytest.mark.parametrize("made", ACTIVATIONS, ids=name_of)
def test_activations(made: Case) -> None:
    check(made)


DIMS: tuple[list[int], ...] = ([1], [-1], [0, 2], [-1, -2], [0, 1, 2, 3])
KEEP = (False, True)
REDUCTIONS: list[Case] = [
    *(
        case(operator, x, dims, keep)
        for operator in (aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default)
        for x, dims, keep in itertools.product((IMAGE,), DIMS, KEEP)
    ),
    *(case(operator, IMAGE) for operator in (aten.mean.default, aten.sum.default, aten.amax.default)),
    *(case(operator, NUMBERS > 0) for operator in (aten.any.default, aten.all.default, aten.sum.default)),
    *(
        case(operator, NUMBERS > 0, dim, keep)
        for operator in (aten.any.dim, aten.all.dim)
        for dim in (0, -1)
        for keep in KEEP
    ),
    *(case(aten.sum.dim_IntList, x, [1], dtype=kind) for x in (X, NUMBERS.int()) for kind in (None, torch.float64)),
    *(case(aten.mean.dim, x, [1], dtype=torch.float64) for x in (X, NUMBERS)),
    *(
        case(operator, IMAGE, dims, correction=correction, keepdim=keep)
        for operator in (aten.var.correction, aten.std.correction)
        for dims, correction, keep in itertools.product(([1], [0, -1], None), (0, 1, 2, None), KEEP)
    ),
    *(
        case(operator, IMAGE, [1], unbiased, keep)
        for operator in (aten.var.dim, aten.std.dim)
        for unbiased in KEEP
        for keep in KEEP
    ),
    *(case(operator, IMAGE, unbiased) for operator in (aten.var.default, aten.std.default) for unbiased in KEEP),
    *(
        case(operator, IMAGE, dim, keep)
        for operator in (aten.argmax.default, aten.argmin.default)
        for dim in (1, -1)
        for keep in KEEP
    ),
    *(case(operator, IMAGE) for operator in (aten.argmax.default, aten.argmin.default)),
    *(case(aten.cumsum.default, x, dim) for x in (X, NUMBERS.int(), SIDES) for dim in (0, -1)),
    case(aten.cumsum.default, NUMBERS, 1, dtype=torch.float32),
    *(case(operator, IMAGE * 9, dim) for operator in (aten.softmax.int, aten.log_softmax.int) for dim in (0, 1, -1)),
    *(case(operator, X, 1, torch.float64) for operator in (aten.softmax.int, aten.log_softmax.int)),
    *(case(operator, X, -1, False) for operator in (aten._softmax.default, aten._log_softmax.default)),
    *(
        case(aten.linalg_vector_norm.default, IMAGE, order, dims, keep)
        for order, dims, keep in itertools.product((1, 2, 3, math.inf), ([1], [-1, 2], None), KEEP)
    ),
    case(aten.linalg_vector_norm.default, X, 2, [1], dtype=torch.float64),
    *(
        case(aten.norm.ScalarOpt_dim, IMAGE, power, dims, keep)
        for power in (None, 1, 3)
        for dims in ([1], [2, -1])
        for keep in KEEP
    ),
    *(case(aten.norm.Scalar, IMAGE, power) for power in (1, 2, 3)),
]


@pytest.mark.parametrize("made", REDUCTIONS, ids=name_of)
def test_reductions(made: Case) -> None:
    check(made)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_large_exponents_do_not_overflow(name: str) -> None:
    check(case(getattr(aten, name).int, torch.tensor([[1e4, 1e4 - 1, -1e4], [-1e4, -1e4, -1e4]]), -1))


def test_an_operator_of_python_is_that_operator() -> None:
    found = {name: TABLE[f"operator.{name}"] for name in ("add", "sub", "mul", "floordiv", "mod", "truediv")}
    assert [f(7, 2) for f in found.values()] == [9, 5, 14, 3, 1, 3.5]
    assert TABLE["operator.neg"](7) == -7
    assert TABLE["operator.getitem"]([5, 6], 1) == 6


def _erf(x: Tensor) -> list[float]:
    return [math.erf(value) for value in x.tolist()]


def test_the_error_function_is_that_of_the_c_library() -> None:
    np.testing.assert_allclose(TABLE["aten.erf"](np, SMALL.numpy()), _erf(SMALL), rtol=1e-5)
