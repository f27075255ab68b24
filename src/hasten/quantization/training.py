"""Train a graph whose observers round, with the float graph as its teacher."""

import torch
from torch.fx import GraphModule

from hasten.distillation.objective import Objective
from hasten.distillation.structure import default_loss
from hasten.distillation.teacher import Pairs, TeacherBatches
from hasten.graph.capture import as_tuple
from hasten.graph.duplicate import duplicate, move
from hasten.quantization.torchao import ObserverBase
from hasten.task import Task
from hasten.training import Training, task_loss, train
from hasten.training.device import pick_device
from hasten.training.randomness import isolated

_TEMPERATURE = 4.0


def start_rounding(prepared: GraphModule) -> None:
    """Let every calibrated observer of `prepared` round with the range it has found."""
    for module in prepared.modules():
        if isinstance(module, ObserverBase) and hasattr(module, "start_rounding"):
            module.start_rounding()


def train_rounded(
    student: GraphModule, teacher: GraphModule, task: Task, alpha: float, options: Training
) -> GraphModule:
    """A trained copy of `student`, a prepared graph whose observers round.

    Args:
        student: What to train.
        teacher: Float graph of the same outputs.
        task: Gives the batches (`train`, else `calibration`, else `holdout` without labels) and the loss.
        alpha: Weight of the teacher's answers.
        options: How to train.
    """
    device = pick_device(options.device)
    batches = Pairs.of(task)
    with isolated():
        inputs, target = next(iter(batches))
    with torch.no_grad():
        answer = teacher(*inputs)
    count = len(as_tuple(answer))
    name = default_loss(answer, target, task)
    objective = Objective(name, task_loss(task), (count, count), temperature=_TEMPERATURE, alpha=alpha, beta=2.0)
    teacher = duplicate(teacher)
    move(teacher, device)
    return train(student, TeacherBatches(batches, teacher, device), objective, options)
