"""What a task says about training: its loss, and its score as a function to validate with."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn

from hasten.errors import InvalidInput
from hasten.graph.capture import capture
from hasten.task import Inputs, Loss, Outputs, Task, default_score, labelled
from hasten.training.device import to_device


def task_loss(task: Task) -> Loss:
    """`task.loss`, or cross entropy over the class dimension of the first output."""
    return task.loss or cross_entropy


def cross_entropy(output: Outputs, target: Tensor) -> Tensor:
    """Mean cross entropy of the first output with integer labels, or with class probabilities of its own shape.

    Args:
        output: Logits [N, C], [N, T, C] (tokens) or [N, C, H, W] (dense prediction), or a tuple starting with them.
        target: Labels [N], [N, T] or [N, H, W], where -100 is ignored; or probabilities shaped like the logits.

    Raises:
        InvalidInput: The shapes fit none of these.
    """
    logits = output[0] if isinstance(output, tuple) else output
    if logits.ndim < 2 or not isinstance(target, Tensor):
        raise InvalidInput(
            f"The default loss needs logits [N, C, ...] and a target tensor, but got an output of shape "
            f"{tuple(logits.shape)} and a target of type {type(target).__name__}. Pass `loss` to the Task."
        )
    dense = (logits.shape[0], *logits.shape[2:])
    if target.is_floating_point() and target.shape == logits.shape:
        return F.cross_entropy(logits, target) if logits.ndim != 3 else F.cross_entropy(logits.mT, target.mT)
    if target.shape == logits.shape[:-1] and logits.ndim <= 3:
        return F.cross_entropy(logits.flatten(0, -2), target.flatten().long())
    if target.shape == dense and not target.is_floating_point():
        return F.cross_entropy(logits, target.long())
    raise InvalidInput(
        f"The default loss needs one label per sample, token or pixel, but got an output of shape "
        f"{tuple(logits.shape)} and a {target.dtype} target of shape {tuple(target.shape)}. Pass `loss` to the Task."
    )


def mean_score(task: Task, original: nn.Module | None = None) -> Callable[[nn.Module], float]:
    """A function that gives a model's mean `task.score`, or its `task.metric`, over `task.holdout`, higher is better.

    Inside `hasten.run` the holdout of a technique's task is the search part alone, so this is fit for early stopping.
    Without labels the target is the original's own output.

    Args:
        task: Where the samples and the score come from.
        original: The captured original, if the caller has it already; only used without labels.
    """
    score = task.score or default_score
    references: dict[int, Outputs] = {}

    def reference(index: int, inputs: Inputs) -> Outputs:
        nonlocal original
        if index not in references:
            original = original or capture(task.model, task.example)
            references[index] = original(*to_device(inputs, _device_of(original)))
        return references[index]

    def answers(model: nn.Module) -> Iterator[tuple[Outputs, Any]]:
        device = _device_of(model)
        for index, (inputs, target) in enumerate(labelled(task.holdout)):
            expected = reference(index, inputs) if target is None else target
            yield model(*to_device(inputs, device)), to_device(expected, device)

    @torch.no_grad()
    def mean(model: nn.Module) -> float:
        found: list[Any] = [(score(*x),) if task.metric is None else x for x in answers(model)]
        if not found:
            raise InvalidInput("`holdout` must hold at least one sample to validate on, but it is empty.")
        whole = pytree.tree_map(lambda *parts: torch.cat(parts), *found)
        return float(whole[0].double().mean() if task.metric is None else task.metric(*whole))

    return mean


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
