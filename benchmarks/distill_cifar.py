"""Distillation on CIFAR-10, equal budgets: ResNet-56 to ResNet-20, and recovery of a narrowed ResNet-56.

    python benchmarks/distill_cifar.py table --epochs 8 --seeds 3 --out results/distill_cifar.json
    python benchmarks/distill_cifar.py recovery --epochs 3
    python benchmarks/distill_cifar.py cache

Every row sees the same `epochs * views` of the training set and the same schedule; the test set is scored once, after
the last epoch. The training set is a fixed list of augmented views (crop and flip drawn once per epoch and image), so
that the teacher answers every view once, for all rows and seeds. Results are written after every run, and runs that
are in the file already are not repeated. Data: the folder `HASTEN_BENCH_DATA`, or `../shared/data` beside the
repository, with `cifar10_{train,test}.npz` and `resnet{20,56}_cifar10.safetensors`.
"""

import argparse
import io
import json
import os
import statistics
import time
from collections.abc import Iterator
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

import hasten
from hasten.distillation.teacher import AnswerCache, Pairs, TeacherBatches, teacher_key
from hasten.techniques.distill import Distill
from hasten.techniques.shrink import Shrink
from hasten.training import Training, mean_score, train

DATA = Path(os.environ.get("HASTEN_BENCH_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
BATCH = 128


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.stride = 2 if width != inputs else 1
        self.conv1 = nn.Conv2d(inputs, width, 3, self.stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride == 2:
            quarter = y.shape[1] // 4
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """He et al. 2015, section 4.2, with option A shortcuts."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        count = (depth - 2) // 6
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(BasicBlock(16, 16) for _ in range(count)))
        self.layer2 = nn.Sequential(BasicBlock(16, 32), *(BasicBlock(32, 32) for _ in range(count - 1)))
        self.layer3 = nn.Sequential(BasicBlock(32, 64), *(BasicBlock(64, 64) for _ in range(count - 1)))
        self.linear = nn.Linear(64, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def images(part: str, count: int | None = None) -> tuple[Tensor, Tensor]:
    """uint8 [N, 3, 32, 32] and int64 [N]."""
    with np.load(DATA / f"cifar10_{part}.npz") as archive:
        jpeg, offset, label = archive["jpeg"], archive["offset"], archive["label"]
    rows = range(len(label) if count is None else min(count, len(label)))
    decoded = [np.asarray(Image.open(io.BytesIO(jpeg[offset[i] : offset[i + 1]].tobytes()))) for i in rows]
    return torch.from_numpy(np.stack(decoded)).movedim(3, 1).contiguous(), torch.from_numpy(label[: len(rows)]).long()


def normalised(x: Tensor) -> Tensor:
    return (x.float() / 255 - MEAN[:, None, None]) / STD[:, None, None]


class Views:
    """Batches of one augmented view of every image; `set_epoch` picks the view, the global generator the order."""

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
        top, left = self.crops[self.view][index].unbind(1)
        rows = top[:, None] + torch.arange(32)
        columns = left[:, None] + torch.arange(32)
        columns = torch.where(self.flips[self.view][index][:, None], columns.flip(1), columns)
        sample = torch.arange(len(index))[:, None, None]
        cropped = self.x[index].movedim(1, 3)[sample, rows[:, :, None], columns[:, None, :]]
        return normalised(cropped.movedim(3, 1))


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


class Bench:
    """Data, the dense baseline, and the results file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder = Path(options.out).parent
        self.folder.mkdir(parents=True, exist_ok=True)
        self.example = (torch.zeros(2, 3, 32, 32),)
        x, y = images("train", options.images)
        self.train = Views(x, y, options.epochs, options.steps)
        x, y = images("test", options.test_images)
        self.test = [(normalised(x[i : i + 500]), y[i : i + 500]) for i in range(0, len(x), 500)]
        self.schedule = Training(
            epochs=options.epochs, lr=options.lr, schedule="onecycle", weight_decay=5e-4, clip_norm=5.0
        )
        self.baseline = self.fine_tuned()
        self.task = hasten.Task(self.baseline, self.example, self.test, train=self.train, name="cifar10")
        self.score = mean_score(self.task)

    def fine_tuned(self) -> nn.Module:
        """ResNet-56 trained on the original pixels, adapted to these JPEG files: the dense baseline."""
        model = CifarResNet(56)
        path = self.folder / f"resnet56_{self.options.images or 'all'}_{self.options.steps or 'all'}.safetensors"
        if path.exists():
            model.load_state_dict(load_file(path))
            return model.eval()
        state = load_file(DATA / "resnet56_cifar10.safetensors")
        model.load_state_dict({**model.state_dict(), **state})
        model = train(model, self.train, F.cross_entropy, replace(self.schedule, epochs=2, lr=0.02))
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
        return model

    def answers(self) -> Path:
        """The file with the teacher's answers to every view, made once."""
        teacher = hasten.capture(self.baseline, self.example)
        path = self.folder / f"teacher-{teacher_key(teacher)}.rows"
        source = Pairs(EveryView(self.train), "inputs")
        cache = AnswerCache(path, source.samples(BATCH), 4e9)
        for _ in TeacherBatches(source, teacher, torch.device("cpu"), cache=cache):
            pass
        return path

    def record(self, name: str, seed: int, run: Any) -> None:
        """Run `run()` and store the test score of its model under `name` and `seed`, unless it is there."""
        path = Path(self.options.out)
        results = json.loads(path.read_text()) if path.exists() else {}
        budget = f"epochs={self.options.epochs} batch={BATCH} steps={len(self.train)} lr={self.options.lr}"
        entry = results.setdefault(f"{self.options.command} {budget}", {}).setdefault(name, {})
        if str(seed) not in entry:
            started = time.perf_counter()
            model = run()
            entry[str(seed)] = {"top1": self.score(model), "train_s": time.perf_counter() - started}
            path.write_text(json.dumps(results, indent=1))
        scores = [run["top1"] for run in entry.values()]
        spread = f" +- {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
        print(
            f"{name:28} seed {seed}  top-1 {entry[str(seed)]['top1']:.4f}  mean {statistics.mean(scores):.4f}{spread}"
        )

    def distil(self, graph: Any, answers: Path, seed: int, **options: Any) -> nn.Module:
        technique = Distill(
            epochs=self.schedule.epochs,
            lr=self.schedule.lr,
            optimizer="sgd",
            schedule="onecycle",
            weight_decay=self.schedule.weight_decay,
            seed=seed,
            **options,
        )
        folder = self.folder / "run"
        folder.mkdir(exist_ok=True)
        for file in folder.iterdir():
            file.unlink()
        os.link(answers, folder / answers.name)
        return replace(technique, folder=str(folder)).apply(graph, self.task)


ROWS: dict[str, dict[str, Any]] = {
    "MSE of logits": {"loss": "mse", "alpha": 0.5},
    "KL (T=4)": {"loss": "kl", "alpha": 0.9},
    "KL (T=4) + hints": {"loss": "kl", "alpha": 0.9, "features": "auto", "feature_weight": 0.5},
    "DKD (T=4, beta=2)": {"loss": "dkd", "alpha": 0.5, "beta": 2.0},
    "DIST (T=1)": {"loss": "dist", "alpha": 0.5, "temperature": 1.0},
}


def table(bench: Bench) -> None:
    """ResNet-56 to ResNet-20, student alone and with every loss."""
    answers = bench.answers()
    print(f"teacher ResNet-56: top-1 {bench.score(bench.baseline):.4f}")
    for seed in range(bench.options.seeds):
        torch.manual_seed(seed)
        student = hasten.capture(CifarResNet(20), bench.example)
        alone = replace(bench.schedule, seed=seed)
        bench.record("student alone", seed, lambda: train(student, bench.train, F.cross_entropy, alone))  # noqa: B023
        for name, options in ROWS.items():
            bench.record(name, seed, lambda: bench.distil(student, answers, seed, **options))  # noqa: B023


def recovery(bench: Bench) -> None:
    """ResNet-56 narrowed to 2.5 times fewer MACs, trained with and without the dense teacher."""
    answers = bench.answers()
    dense = hasten.capture(bench.baseline, bench.example)
    wanted = macs(dense, bench.example) / 2.5
    widths = (w / 100 for w in range(80, 40, -1))
    candidates = (Shrink(depth=1.0, width=width).apply(dense, bench.task) for width in widths)
    narrow = next(graph for graph in candidates if macs(graph, bench.example) <= wanted)
    print(f"dense: {macs(dense, bench.example) / 1e6:.1f} MMAC, top-1 {bench.score(dense):.4f}")
    print(f"narrowed: {macs(narrow, bench.example) / 1e6:.1f} MMAC, before recovery {bench.score(narrow):.4f}")
    for seed in range(bench.options.seeds):
        alone = replace(bench.schedule, seed=seed)
        bench.record("labels alone", seed, lambda: train(narrow, bench.train, F.cross_entropy, alone))  # noqa: B023
        bench.record("with the dense teacher", seed, lambda: bench.distil(narrow, answers, seed))  # noqa: B023


def cache(bench: Bench) -> None:
    """Wall time of the first and the second epoch with and without the cache, interleaved, on one fixed view."""
    bench.train.crops, bench.train.flips = bench.train.crops[:1], bench.train.flips[:1]
    bench.train.set_epoch(0)
    teacher = hasten.capture(bench.baseline, bench.example)
    started = clocks()
    with torch.no_grad():
        for x, _ in bench.train:
            teacher(x)
    print(f"teacher forward, one epoch: {between(started, clocks())}")
    student = hasten.capture(CifarResNet(20), bench.example)
    for kept in (4.0, 0.0, 4.0, 0.0):
        stamps: list[tuple[float, float]] = []
        source = Stamped(bench.train, stamps)
        technique = Distill(epochs=3, lr=0.05, precision="fp32", cache_gb=kept)
        technique.apply(student, replace(bench.task, train=source))
        times = ", ".join(between(a, b) for a, b in zip(stamps[::2], stamps[1::2], strict=True))
        print(f"cache {'on ' if kept else 'off'}, epochs: {times}")


def clocks() -> tuple[float, float]:
    """Wall and CPU seconds; the latter also tells something on a busy machine."""
    return time.perf_counter(), time.process_time()


def between(start: tuple[float, float], end: tuple[float, float]) -> str:
    return f"{end[0] - start[0]:.1f} s (CPU {end[1] - start[1]:.1f} s)"


class Stamped:
    """Batches that note when a full pass begins and ends."""

    def __init__(self, batches: Views, stamps: list[tuple[float, float]]) -> None:
        self.batches, self.stamps, self.set_epoch = batches, stamps, batches.set_epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        started, done = clocks(), 0
        try:
            for batch in self.batches:
                done += 1
                yield batch
        finally:  # nobody asks for more after the last batch of an epoch: the generator is closed
            if done == len(self.batches):
                self.stamps += [started, clocks()]


def macs(model: nn.Module, example: tuple[Tensor, ...]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*example)
    return counter.get_total_flops() / 2 / len(example[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("table", "recovery", "cache"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--images", type=int, help="training images; default: all")
    parser.add_argument("--test-images", type=int, help="test images; default: all")
    parser.add_argument("--steps", type=int, help="steps per epoch; default: the whole set")
    parser.add_argument("--out", default="results/distill_cifar.json")
    options = parser.parse_args()
    {"table": table, "recovery": recovery, "cache": cache}[options.command](Bench(options))


if __name__ == "__main__":
    main()
