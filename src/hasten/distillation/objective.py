"""The loss that is minimised: task loss, distance to the teacher's outputs, distance to its features."""

from typing import Any

import torch
from torch import Tensor, nn

from hasten.distillation import losses
from hasten.distillation.features import FeatureDistance
from hasten.distillation.structure import LossName, class_axis, rows
from hasten.graph.capture import as_tuple
from hasten.task import Loss, Outputs

_IGNORED_LABEL = -100


class Objective(nn.Module):
    """`(1 - alpha) * task loss + alpha * distance to the teacher + feature_weight * feature distance`.

    Without labels the first term is left out and the second counts in full. Called as `loss(output, (labels,
    answers))`, where output and answers are the models' own outputs followed by their features.

    Args:
        name: Distance between the first outputs; further outputs of equal shape add their squared distance in units
            of the teacher's variance.
        task_loss: `loss(output, labels)`.
        outputs: How many of the student's and of the teacher's outputs are their own.
        temperature: T of "kl", "dkd" and "dist".
        alpha: Weight of the teacher's outputs.
        beta: Weight of the other classes in "dkd".
        features: Distance of features, with its projections, or None.
        feature_weight: Its weight.
    """

    def __init__(
        self,
        name: LossName,
        task_loss: Loss,
        outputs: tuple[int, int],
        *,
        temperature: float,
        alpha: float,
        beta: float,
        features: FeatureDistance | None = None,
        feature_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.name, self.task_loss, self.outputs = name, task_loss, outputs
        self.temperature, self.alpha, self.beta = temperature, alpha, beta
        self.features, self.feature_weight = features, feature_weight

    def forward(self, output: Outputs, target: tuple[Any, tuple[Tensor, ...]]) -> Tensor:
        """The loss of one batch, a scalar."""
        labels, answers = target
        student, teacher = as_tuple(output), as_tuple(answers)
        own, known = student[: self.outputs[0]], teacher[: self.outputs[1]]
        loss = self._distance(own, known, labels)
        if labels is not None and self.alpha < 1:
            task = self.task_loss(own[0] if len(own) == 1 else own, labels)
            loss = self.alpha * loss + (1 - self.alpha) * task
        if self.features is not None:
            distance = self.features(student[self.outputs[0] :], teacher[self.outputs[1] :])
            loss = loss + self.feature_weight * distance
        return loss

    def _distance(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], labels: Any) -> Tensor:
        loss = self._first(student[0], teacher[0], labels)
        rest = [
            losses.relative_mse(s, t)
            for s, t in zip(student[1:], teacher[1:], strict=False)
            if s.shape == t.shape and t.is_floating_point()
        ]
        return loss + torch.stack(rest).mean() if rest else loss

    def _first(self, student: Tensor, teacher: Tensor, labels: Any) -> Tensor:
        if self.name == "mse":
            return losses.mse(student, teacher)
        axis = class_axis(teacher.shape, labels)
        student, teacher = rows(student, axis), rows(teacher, axis)
        if self.name == "cosine":
            return losses.cosine(student, teacher)
        classes = _row_labels(labels, teacher)
        if (classes == _IGNORED_LABEL).any():
            counted = classes != _IGNORED_LABEL
            student, teacher, classes = student[counted], teacher[counted], classes[counted]
        if self.name == "kl":
            return losses.kl(student, teacher, self.temperature)
        if self.name == "dist":
            return losses.dist(student, teacher, self.temperature)
        return losses.dkd(student, teacher, classes, self.temperature, self.beta)


def _row_labels(labels: Any, teacher: Tensor) -> Tensor:
    """One class per row: the labels, or the teacher's first choice where there are none of that form."""
    if isinstance(labels, Tensor) and not labels.is_floating_point() and labels.numel() == len(teacher):
        return labels.flatten().long()
    return teacher.argmax(1)
