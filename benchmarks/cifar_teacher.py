"""The teacher in the CIFAR-10 benchmarks: its answers to every view, kept for all runs, and `Distill` on them."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hasten
from cifar import BATCH, EXAMPLE, Views
from hasten.distillation.teacher import AnswerCache, Pairs, TeacherBatches, teacher_key
from hasten.techniques.distill import Distill
from hasten.training import Training
from hasten_bench.material import cache


class EveryView:
    """All views one after the other, in order, to fill the teacher's cache."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def __len__(self) -> int:
        return len(self.views.crops) * -(-len(self.views.x) // BATCH)

    def __iter__(self) -> Iterator[Tensor]:
        for view in range(len(self.views.crops)):
            self.views.set_epoch(view)
            for start in range(0, len(self.views.x), BATCH):
                yield self.views.batch(torch.arange(start, min(start + BATCH, len(self.views.x))))


def answers(teacher: nn.Module, views: Views) -> Path:
    """The file with the teacher's answers to every view, made once and kept beside the baselines."""
    graph = hasten.capture(teacher, EXAMPLE)
    path = cache() / "cifar" / f"teacher-{teacher_key(graph)}.rows"
    source = Pairs(EveryView(views), "inputs")
    kept = AnswerCache(path, source.samples(BATCH), 4e9)
    for _ in TeacherBatches(source, graph, torch.device("cpu"), torch.bfloat16, kept):
        pass
    return path


def distilled(student: Any, task: hasten.Task, known: Path, options: Training, **loss: Any) -> nn.Module:
    """`Distill` on a student with the training options of the run and the answers that are known already."""
    with tempfile.TemporaryDirectory(dir=known.parent) as folder:
        os.link(known, Path(folder) / known.name)
        shared = {name: getattr(options, name) for name in ("epochs", "lr", "schedule", "weight_decay", "seed")}
        technique = Distill(**shared, optimizer="sgd", clip_norm=options.clip_norm, folder=folder, **loss)
        return technique.apply(student, task)
