"""Ridge regression from streamed moments: memory depends on the numbers of inputs and outputs, not on that of rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass
class Moments:
    """Sums of products of inputs z and outputs y over rows, float64.

    Attributes:
        zz: [inputs, inputs].
        zy: [inputs, outputs].
        yy: [outputs].
        z: [inputs].
        y: [outputs].
        rows: How many rows went in.
    """

    zz: Tensor
    zy: Tensor
    yy: Tensor
    z: Tensor
    y: Tensor
    rows: int = 0

    @classmethod
    def zero(cls, inputs: int, outputs: int) -> "Moments":
        """No rows yet."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        return cls(zeros(inputs, inputs), zeros(inputs, outputs), zeros(outputs), zeros(inputs), zeros(outputs))

    def add(self, z: Tensor, y: Tensor) -> None:
        """Count in rows z [rows, inputs] and y [rows, outputs]."""
        self.zz += (z.mT @ z).double().cpu()
        self.zy += (z.mT @ y).double().cpu()
        self.yy += y.double().square().sum(0).cpu()
        self.z += z.double().sum(0).cpu()
        self.y += y.double().sum(0).cpu()
        self.rows += len(z)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.zz + other.zz, self.zy + other.zy, self.yy + other.yy, self.z + other.z, self.y + other.y,
            self.rows + other.rows,
        )  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """y ~ weight @ z + shift.

    Attributes:
        weight: [outputs, inputs].
        shift: [outputs]; zero where there may be none.
        ridge: What it was found with; None: the weight is the one before.
    """

    weight: Tensor
    shift: Tensor
    ridge: float | None

    def squared_error(self, moments: Moments) -> Tensor:
        """Mean over the rows of the squared error of every output, [outputs]."""
        quadratic = ((self.weight @ moments.zz) * self.weight).sum(1) - 2 * (self.weight * moments.zy.mT).sum(1)
        linear = 2 * self.shift * (self.weight @ moments.z - moments.y)
        return (moments.yy + quadratic + linear) / moments.rows + self.shift.square()


def refit(before: Tensor, fitted: Moments, checked: Moments, scale: Tensor, *, shifted: bool) -> Fit:
    """The weight that minimises |y - weight z - shift|^2 + ridge |weight - before|^2; `before` if none does better.

    The ridge counts in units of the mean variance of an input. It is the one of a few whose fit on one half of the rows
    has the smallest error on the other half; the answer is then fitted on all rows. Where no ridge beats `before` on
    the other half, the weight stays.

    Args:
        before: [outputs, inputs], what the ridge pulls to.
        fitted: Rows to fit on.
        checked: Other rows, to choose the ridge on.
        scale: How much an error of each output counts, [outputs].
        shifted: Whether there may be a shift.
    """
    before = before.double().cpu()
    candidates: list[float | None] = [None, *_RIDGES]
    tried = [_solve(before, fitted, ridge, shifted) for ridge in candidates]
    importance = scale.double().cpu().square()
    errors = [float((fit.squared_error(checked) * importance).sum()) for fit in tried]
    best = min(range(len(tried)), key=lambda i: errors[i] if errors[i] == errors[i] else float("inf"))
    return _solve(before, fitted + checked, candidates[best], shifted)


def _solve(before: Tensor, moments: Moments, ridge: float | None, shifted: bool) -> Fit:
    rows = max(moments.rows, 1)
    mean_z, mean_y = (moments.z / rows, moments.y / rows) if shifted else (moments.z * 0, moments.y * 0)
    weight = before
    if ridge is not None:
        spread = moments.zz / rows - torch.outer(mean_z, mean_z)
        missing = moments.zy / rows - torch.outer(mean_z, mean_y) - spread @ before.mT
        pulled = spread + ridge * spread.diagonal().mean().clamp_min(1e-12) * torch.eye(len(spread), dtype=spread.dtype)
        factor, failed = torch.linalg.cholesky_ex(pulled)
        if not failed:
            weight = before + torch.cholesky_solve(missing, factor).mT
    return Fit(weight, mean_y - weight @ mean_z, ridge)
