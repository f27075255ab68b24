"""CIFAR-10 and its ResNets for the training benchmarks: data, dense baselines, results that are never redone.

    python benchmarks/cifar.py 56 20 [--images 10240]

fine-tunes the published ResNets on the JPEG copies of CIFAR-10 and keeps them under `HASTEN_BENCH_CACHE`, with a note
of what it took (fewer images are quicker, and leave the baseline further from its best). Data: the folder
`HASTEN_BENCH_DATA`. The last 5,000 training images are set apart: techniques that need a score while they work
(early stops, sensitivity) get these; the test set is scored once per finished model.
"""

import argparse
import datetime
import io
import itertools
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hasten.machine import fingerprint
from hasten.training import Training, train
from hasten_bench.material import cache, shared_data
from hasten_bench.nets.cifar_resnet import network

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
BATCH, VALIDATION = 128, 5000
RESULTS = Path(__file__).parent / "results"
EXAMPLE = (torch.zeros(2, 3, 32, 32),)
FINE_TUNING = {
    56: Training(epochs=2, lr=0.03, schedule="onecycle", weight_decay=5e-4, channels_last=True),
    20: Training(epochs=3, lr=0.03, schedule="onecycle", weight_decay=5e-4, channels_last=True),
}


def images(part: str, count: int | None = None) -> tuple[Tensor, Tensor]:
    """uint8 [N, 3, 32, 32] and int64 [N]: the first `count` of "train", "validation" or "test"."""
    with np.load(shared_data(f"cifar10_{'test' if part == 'test' else 'train'}.npz")) as archive:
        jpeg, offset, label = archive["jpeg"].tobytes(), archive["offset"], archive["label"]
    cut = {"train": slice(None, -VALIDATION), "validation": slice(-VALIDATION, None), "test": slice(None)}[part]
    ranges = list(itertools.pairwise(offset))[cut][:count]
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(jpeg[start:end]))) for start, end in ranges])
    return torch.from_numpy(decoded).movedim(3, 1).contiguous(), torch.from_numpy(label[cut][:count]).long()


def normalised(x: Tensor) -> Tensor:
    """float32 from uint8 [N, 3, 32, 32]."""
    return (x.float() / 255 - MEAN[:, None, None]) / STD[:, None, None]


def scored(part: str) -> list[tuple[Tensor, Tensor]]:
    """Batches of "validation" or "test" without augmentation."""
    x, y = images(part)
    return [(normalised(x[i : i + 500]), y[i : i + 500]) for i in range(0, len(x), 500)]


class Views:
    """Batches of one crop and flip of every image; `set_epoch` picks which, the global generator the order.

    The crops and flips are drawn once, so that a teacher's answers to them can be kept for all runs.
    """

    def __init__(self, x: Tensor, y: Tensor, views: int, steps: int | None = None) -> None:
        self.x, self.y, self.view = F.pad(x, (4, 4, 4, 4)), y, 0
        generator = torch.Generator().manual_seed(0)
        self.crops = torch.randint(0, 9, (views, len(x), 2), generator=generator)
        self.flips = torch.randint(0, 2, (views, len(x)), generator=generator).bool()
        self.steps = min(steps or len(x), len(x) // BATCH)

    def set_epoch(self, epoch: int) -> None:
        self.view = epoch % len(self.crops)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.x))
        for step in range(self.steps):
            index = order[step * BATCH : (step + 1) * BATCH]
            yield self.batch(index), self.y[index]

    def batch(self, index: Tensor) -> Tensor:
        """The current view of some images."""
        top, left = self.crops[self.view][index].unbind(1)
        rows = top[:, None] + torch.arange(32)
        columns = left[:, None] + torch.arange(32)
        columns = torch.where(self.flips[self.view][index][:, None], columns.flip(1), columns)
        sample = torch.arange(len(index))[:, None, None]
        cropped = self.x[index].movedim(1, 3)[sample, rows[:, :, None], columns[:, None, :]]
        return normalised(cropped.movedim(3, 1))


@torch.no_grad()
def accuracy(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Top-1 of a model in eval mode, computed in bfloat16 as it was trained."""
    with torch.autocast("cpu", torch.bfloat16):
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    return hits / sum(len(y) for _, y in batches)


def dense(depth: int, count: int | None = None) -> nn.Module:
    """The fine-tuned baseline in eval mode; trained now (on `count` images) if it is not kept yet."""
    kept = cache() / "cifar" / f"resnet{depth}.safetensors"
    if not kept.exists():
        fine_tune(depth, kept, count)
    model = network(depth)
    model.load_state_dict(load_file(kept))
    return model.eval()


def published(depth: int) -> nn.Module:
    """The network trained on the original pixels, in eval mode."""
    model = network(depth)
    model.load_state_dict(load_file(shared_data(f"resnet{depth}_cifar10.safetensors")))
    return model.eval()


def fine_tune(depth: int, path: Path, count: int | None = None) -> None:
    """Adapt the published weights to `count` of these images and keep them, with a note of what it took."""
    model, options = published(depth), FINE_TUNING[depth]
    options = replace(options, checkpoint=path.with_suffix(".pt"), checkpoint_every=50)  # a restart goes on from here
    started, views = time.time(), Views(*images("train", count), options.epochs)
    tuned = train(model, views, F.cross_entropy, options, on_epoch=print)
    note = {
        "model": f"ResNet-{depth}",
        "test_top1": accuracy(tuned, scored("test")),
        "epochs": options.epochs,
        "training_images": len(views.y),
        "batch": BATCH,
        "peak_lr": options.lr,
        "schedule": options.schedule,
        "weight_decay": options.weight_decay,
        "seconds": round(time.time() - started),
    } | provenance()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({name: value.contiguous() for name, value in tuned.state_dict().items()}, scratch)
    scratch.rename(path)
    write(note, path.with_suffix(".json"))
    print(json.dumps(note, indent=1), flush=True)


def provenance() -> dict[str, Any]:
    """When, where, and with what."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": fingerprint(),
        "commit": commit.stdout.strip(),
    }


def write(document: Any, path: Path) -> None:
    """Write JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}")
    scratch.write_text(json.dumps(document, indent=1) + "\n")
    scratch.rename(path)


class Ledger:
    """One JSON file of finished runs; a run that is in it is not done again.

    Args:
        path: The file, read if it is there.
        budget: What every run was given; a file of another budget is refused.
    """

    def __init__(self, path: Path, budget: dict[str, Any]) -> None:
        self.path = path
        self.document = json.loads(path.read_text()) if path.exists() else {"budget": budget} | provenance()
        if self.document["budget"] != budget:
            raise SystemExit(f"{path} was made with {self.document['budget']}, not {budget}: move it away first.")

    def run(self, table: str, row: str, seed: int, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `work` measured, now or before."""
        runs = self.document.setdefault(table, {}).setdefault(row, {}).setdefault("runs", {})
        if str(seed) not in runs:
            started = time.perf_counter(), time.process_time()
            found = work()
            spent = {"wall_s": time.perf_counter() - started[0], "cpu_s": time.process_time() - started[1]}
            runs[str(seed)] = found | {name: round(value, 1) for name, value in spent.items()}
            print(f"{table} | {row} | seed {seed}: {runs[str(seed)]}", flush=True)
        self.summarise(table)
        self.save()
        return runs[str(seed)]

    def has(self, table: str, row: str, seed: int) -> bool:
        """Whether this run is finished."""
        return str(seed) in self.document.get(table, {}).get(row, {}).get("runs", {})

    def summarise(self, table: str) -> None:
        """Mean and standard deviation of `top1` over the seeds of every row."""
        for entry in self.document[table].values():
            scores = [run["top1"] for run in entry["runs"].values() if "top1" in run]
            if scores:
                entry["mean_top1"] = statistics.mean(scores)
                entry["stdev_top1"] = statistics.stdev(scores) if len(scores) > 1 else None

    def note(self, name: str, value: Any) -> None:
        """Store something beside the runs."""
        self.document[name] = value
        self.save()

    def save(self) -> None:
        write(self.document, self.path)


def macs(model: nn.Module, example: tuple[Tensor, ...] = EXAMPLE) -> float:
    """Multiply-accumulates per sample."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*example)
    return counter.get_total_flops() / 2 / len(example[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("depths", nargs="+", type=int, choices=FINE_TUNING)
    parser.add_argument("--images", type=int, help="of the training images; default: all")
    options = parser.parse_args()
    for depth in options.depths:
        dense(depth, options.images)


if __name__ == "__main__":
    main()
