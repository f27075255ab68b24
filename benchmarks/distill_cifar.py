"""Distillation on CIFAR-10 at equal budgets, ResNet-56 to ResNet-20, and what the cache of the teacher's answers saves.

    python benchmarks/distill_cifar.py table --seeds 3
    python benchmarks/distill_cifar.py cache

The student starts from random weights and sees `--images` of the training images, one fixed crop and flip of each per
epoch, so that the teacher answers every view once for all rows and seeds. All rows share schedule, order of the images
and initial weights of their seed; nothing was tuned. The test set is scored once, after the last epoch. Finished runs
are not repeated. Data: see `cifar.py`.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

import hasten
from cifar import BATCH, EXAMPLE, RESULTS, Ledger, Views, accuracy, dense, images, published, scored
from cifar_teacher import answers, distilled
from hasten.techniques.distill import Distill
from hasten.training import Training, train
from hasten_bench.nets.cifar_resnet import network

ROWS: dict[str, dict[str, Any]] = {
    "KL (T=4)": {"loss": "kl", "alpha": 0.9},
    "MSE of logits": {"loss": "mse", "alpha": 0.5},
    "KL (T=4) + hints": {"loss": "kl", "alpha": 0.9, "features": "auto", "feature_weight": 0.5},
    "DKD (T=4, beta=2)": {"loss": "dkd", "alpha": 0.5, "beta": 2.0},
    "DIST (T=1)": {"loss": "dist", "alpha": 0.5, "temperature": 1.0},
}


def table(options: argparse.Namespace) -> None:
    """ResNet-56 to ResNet-20, student alone and with every loss."""
    schedule = Training(epochs=options.epochs, lr=0.1, schedule="onecycle", weight_decay=5e-4, clip_norm=5.0)
    budget = {
        "training_images": options.images, "epochs": options.epochs, "batch": BATCH, "peak_lr": schedule.lr,
        "schedule": "onecycle", "weight_decay": schedule.weight_decay, "clip_norm": schedule.clip_norm,
        "student": "ResNet-20 from random weights", "teacher": "ResNet-56", "reported": "last epoch, test set",
    }  # fmt: skip
    ledger = Ledger(RESULTS / "distill_cifar.json", budget)
    views = Views(*images("train", options.images), options.epochs)
    test, teacher = scored("test"), dense(56)
    if "teacher_top1" not in ledger.document:
        ledger.note("teacher_top1", accuracy(teacher, test))
    task = hasten.Task(teacher, EXAMPLE, test[:1], train=views, name="cifar10")
    known = answers(teacher, views)
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        student = hasten.capture(network(20).eval(), EXAMPLE)
        run = replace(schedule, seed=seed)

        def alone() -> dict[str, Any]:
            return {"top1": accuracy(train(student, views, F.cross_entropy, run), test)}  # noqa: B023

        def taught(loss: dict[str, Any]) -> dict[str, Any]:
            return {"top1": accuracy(distilled(student, task, known, run, **loss), test)}  # noqa: B023

        ledger.run("table", "student alone", seed, alone)
        for name, loss in ROWS.items():
            ledger.run("table", name, seed, lambda: taught(loss))  # noqa: B023


def cache(options: argparse.Namespace) -> None:
    """Wall time of every epoch with and without the cache, interleaved, on one fixed view, beside a teacher's pass."""
    views = Views(*images("train", 2560), 1)
    teacher = published(56)  # a pass costs the same with any weights
    task = hasten.Task(teacher, EXAMPLE, [(next(iter(views))[0], None)], train=views, name="cifar10")
    torch.manual_seed(0)
    student = hasten.capture(network(20).eval(), EXAMPLE)
    graph = hasten.capture(teacher, EXAMPLE)
    rows: dict[str, list[Any]] = {"teacher_forward": [], "cache_on": [], "cache_off": []}
    for round_ in range(2):
        for kept in (4.0, 0.0)[:: 1 if round_ == 0 else -1]:
            stamps: list[float] = []
            technique = Distill(epochs=3, lr=0.05, cache_gb=kept)
            technique.apply(student, replace(task, train=Stamped(views, stamps)))
            epochs = [end - start for start, end in zip(stamps[::2], stamps[1::2], strict=True)]
            rows["cache_on" if kept else "cache_off"].append(epochs)
        started = time.perf_counter()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for batch, _ in views:
                graph(batch)
        rows["teacher_forward"].append(time.perf_counter() - started)
    ledger = Ledger(RESULTS / "distill_cache.json", {"images": 2560, "epochs": 3, "precision": "bf16"})
    ledger.note("epoch_wall_s", rows)
    print(rows)


class Stamped:
    """Batches that note when a full pass begins and ends."""

    def __init__(self, batches: Views, stamps: list[float]) -> None:
        self.batches, self.stamps = batches, stamps

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        started, done = time.perf_counter(), 0
        try:
            for batch in self.batches:
                done += 1
                yield batch
        finally:  # nobody asks for more after the last batch of an epoch: the generator is closed
            if done == len(self.batches):
                self.stamps += [started, time.perf_counter()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("table", "cache"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=5120)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    {"table": table, "cache": cache}[options.command](options)


if __name__ == "__main__":
    main()
