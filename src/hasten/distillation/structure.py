"""What a model's output is, seen from its shape and its target, and which loss that calls for by default."""

from typing import Any, Literal

import torch
from torch import Tensor

from hasten.task import Outputs, Task, cosine_similarity

LossName = Literal["kl", "mse", "dkd", "dist", "cosine"]

_UNIT_NORM_TOLERANCE = 1e-3


def first(output: Outputs) -> Tensor:
    """The output that losses by class look at."""
    return output[0] if isinstance(output, tuple) else output


def class_axis(shape: torch.Size, target: Any) -> int:
    """Where the classes are: dimension 1 for dense prediction [N, C, H, W] and labels [N, H, W], else the last."""
    if not isinstance(target, Tensor) or len(shape) <= 3:
        dense = len(shape) == 3 and isinstance(target, Tensor) and target.shape == (shape[0], shape[2])
        return 1 if dense and target.shape != shape[:2] else len(shape) - 1
    return 1


def rows(output: Tensor, axis: int) -> Tensor:
    """`output` as [rows, classes], with the classes taken from dimension `axis`."""
    return output.movedim(axis, -1).flatten(0, -2) if output.ndim > 1 else output.unsqueeze(1)


def default_loss(output: Outputs, target: Any, task: Task) -> LossName:
    """KL for class scores, cosine for embeddings, MSE for everything else.

    Class scores: integer labels, or no labels and a two- or three-dimensional output with more than one column that
    is scored by argmax (neither `task.score` nor `task.metric` given). Embeddings: unit-norm rows, or `task.score` is
    the cosine.

    Args:
        output: The teacher's output for one batch.
        target: The labels of that batch, or None.
        task: Tells how the user scores.
    """
    scores = first(output).detach().float()
    if task.score is cosine_similarity or _has_unit_rows(scores):
        return "cosine"
    if isinstance(target, Tensor):
        integer = not (target.is_floating_point() or target.is_complex())
        one_per_row = target.ndim == scores.ndim - 1
        probabilities = target.shape == scores.shape and _has_probability_rows(target)
        return "kl" if (integer and one_per_row) or probabilities else "mse"
    by_argmax = target is None and task.score is None and task.metric is None
    return "kl" if by_argmax and scores.ndim in (2, 3) and scores.shape[-1] > 1 else "mse"


def _has_unit_rows(scores: Tensor) -> bool:
    if scores.ndim != 2 or scores.shape[1] < 2:
        return False
    return bool(((scores.norm(dim=1) - 1).abs() < _UNIT_NORM_TOLERANCE).all())


def _has_probability_rows(target: Tensor) -> bool:
    sums = target.float().sum(-1)
    return bool((target >= 0).all()) and bool(((sums - 1).abs() < _UNIT_NORM_TOLERANCE).all())
