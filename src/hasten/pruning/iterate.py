"""Iterative pruning: cut a little more, train, measure, and stop at the last step that keeps the accuracy."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.fx import GraphModule

from hasten.distillation.objective import Objective
from hasten.distillation.structure import default_loss
from hasten.distillation.teacher import Pairs, TeacherBatches
from hasten.errors import Unsupported
from hasten.graph.capture import as_tuple, capture
from hasten.graph.duplicate import move
from hasten.task import Task
from hasten.training import Training, mean_score, task_loss, train
from hasten.training.device import pick_device, pick_dtype
from hasten.training.randomness import isolated

Step = Callable[[GraphModule, float], GraphModule]
"""(graph, share pruned after this step) -> pruned graph."""

Mask = Callable[[nn.Module, int], None]


def iterate(
    graph: GraphModule,
    task: Task,
    step: Step,
    shares: Sequence[float],
    options: Training,
    max_drop: float | None,
    after_step: Callable[[GraphModule], Mask] | None = None,
) -> GraphModule:
    """Prune `graph` step by step, each step followed by recovery with the original as teacher.

    Args:
        graph: Left as it is.
        task: Its holdout (inside `hasten.run` the search part alone) measures the score.
        step: Prunes further.
        shares: What `step` is called with, in order.
        options: The training after each step.
        max_drop: Largest accepted drop of the mean score against `graph`; the last graph within it is returned. None:
            take every step.
        after_step: Given the pruned graph, what to do after every optimizer step (apply masks again).

    Raises:
        Unsupported: Already the first step drops more.
    """
    recover = _Recovery(task, options)
    score = mean_score(task, recover.teacher) if max_drop is not None else None
    start = score(graph) if score else 0.0
    best: GraphModule | None = None
    current = graph
    for share in shares:
        current = step(current, share)
        current = recover(current, after_step(current) if after_step else None)
        drop = start - score(current) if score else 0.0
        if max_drop is not None and drop > max_drop:
            if best is None:
                raise Unsupported(
                    f"Pruning must keep the score within {max_drop}, but already a share of {share:.3g} drops it by "
                    f"{drop:.4g} after recovery. Raise `steps`, `epochs` or `max_drop`."
                )
            return best
        best = current
    assert best is not None
    return best


class _Recovery:
    """Trains a pruned graph to answer like the original (Hinton et al. 2015), on labels too where there are any."""

    def __init__(self, task: Task, options: Training) -> None:
        self.task = task
        self.options = options
        self.teacher = capture(task.model, task.example)
        move(self.teacher, pick_device(options.device))

    def __call__(self, graph: GraphModule, after_step: Mask | None) -> GraphModule:
        batches = Pairs.of(self.task)
        device = pick_device(self.options.device)
        with isolated(), torch.no_grad():
            inputs, target = next(iter(batches))
            answers = self.teacher(*(x.to(device) for x in inputs))
        name = default_loss(answers, target, self.task)
        count = len(as_tuple(answers))
        loss = Objective(name, task_loss(self.task), (count, count), temperature=4.0, alpha=0.9, beta=2.0)
        taught = TeacherBatches(batches, self.teacher, device, pick_dtype(self.options.precision, device, graph), None)
        return train(graph, taught, loss, self.options, after_step=after_step)
