"""hasten's `Distill` beside torchdistill on one pair: accuracy, seconds per epoch, lines of code.

    python benchmarks/distill_peer.py --seeds 3

ResNet-56 teaches ResNet-20; both have their published weights, from the original pixels, so there is something to
learn. Both tools: KL at temperature 4 mixed half and half with the labels, SGD with Nesterov momentum at a constant
rate, no weight decay, float32, the same images without augmentation, as many epochs. What differs is the order of the
images. The tools take turns run by run. Run it on a quiet machine: seconds are reported.
torchdistill comes from its pinned environment (see `hasten_bench`). Data: see `cifar.py`.
"""

import argparse
import ast
import functools
import inspect
import io
import statistics
import sys
import time
import tokenize
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import hasten
from cifar import BATCH, EXAMPLE, RESULTS, Ledger, accuracy, images, normalised, published, scored
from hasten.techniques.distill import Distill
from hasten_bench import environments
from hasten_bench.job import Job
from hasten_bench.peers import torchdistill as peer

LR = 0.01
Rows = torch.utils.data.TensorDataset


def with_hasten(
    teacher: nn.Module, student: nn.Module, rows: Rows, epochs: int, seed: int, cache_gb: float = 4.0
) -> nn.Module:
    loader = torch.utils.data.DataLoader(rows, BATCH, shuffle=True, drop_last=True)
    task = hasten.Task(teacher, EXAMPLE, holdout=loader, train=loader)
    graph = hasten.capture(student, EXAMPLE)
    technique = Distill(
        temperature=4.0, alpha=0.5, loss="kl", epochs=epochs, lr=LR, optimizer="sgd", schedule="constant",
        weight_decay=0.0, clip_norm=None, precision="fp32", seed=seed, cache_gb=cache_gb,
    )  # fmt: skip
    return technique.apply(graph, task)


def with_torchdistill(teacher: nn.Module, student: nn.Module, rows: Rows, epochs: int, seed: int) -> nn.Module:
    from torchdistill.core.distillation import get_distillation_box

    torch.manual_seed(seed)
    sampler = {"class_or_func": torch.utils.data.RandomSampler}
    loader = {"dataset_id": "train", "sampler": sampler, "kwargs": {"batch_size": BATCH, "drop_last": True}}
    config = {
        "num_epochs": epochs, "train_data_loader": loader, "val_data_loader": loader,
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": LR, "momentum": 0.9, "nesterov": True}},
        "criterion": peer.CRITERION,
    }  # fmt: skip
    box = get_distillation_box(teacher, student, {"train": rows}, config, torch.device("cpu"), None, False, 1.0)
    for epoch in range(box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        for x, y, extra in box.train_data_loader:
            box.post_forward_process(box.forward_process(x, y, extra))
        box.post_epoch_process()
    return box.student_model.eval()


TOOLS: dict[str, Callable[..., nn.Module]] = {
    "hasten": with_hasten,
    "torchdistill": with_torchdistill,
    "hasten without its cache": functools.partial(with_hasten, cache_gb=0.0),
}


class Stamped(Rows):
    """Images and labels that note when each image is asked for, alone or in a batch."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__(x, y)
        self.stamps: list[float] = []

    def __getitems__(self, indices: list[int]) -> list[Any]:
        self.stamps += [time.perf_counter()] * len(indices)
        return [(self.tensors[0][i], self.tensors[1][i]) for i in indices]

    def __getitem__(self, index: int) -> Any:
        self.stamps.append(time.perf_counter())
        return super().__getitem__(index)


def written_out(tool: str) -> str:
    """The source of a tool's function, with what it takes from `peer` written out where it stands."""
    source = inspect.getsource(peer)
    named = {ast.unparse(x.targets[0]): x.value for x in ast.parse(source).body if isinstance(x, ast.Assign)}
    function = inspect.getsource(getattr(TOOLS[tool], "func", TOOLS[tool]))
    return function.replace("peer.CRITERION", str(ast.get_source_segment(source, named["CRITERION"])))


def length(source: str) -> dict[str, int]:
    """Lines of source as it stands here, and its tokens, for which no layout wins."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    layout = (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENDMARKER)
    return {"lines": len(source.splitlines()), "tokens": sum(token.type not in layout for token in tokens)}


def run(tool: str, rows: Stamped, epochs: int, seed: int, test: Any) -> dict[str, Any]:
    """Distil with one tool; an epoch lasts from its first batch to that of the next, or to the end."""
    rows.stamps = []
    trained = TOOLS[tool](published(56).requires_grad_(False), published(20), rows, epochs, seed)
    seen = len(rows) // BATCH * BATCH
    starts = rows.stamps[-epochs * seen :: seen]  # hasten looks at some images before it starts
    ends = [*starts[1:], time.perf_counter()]
    return {"epoch_s": [end - start for start, end in zip(starts, ends, strict=True)], "top1": accuracy(trained, test)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--test-images", type=int, default=2500)
    options = parser.parse_args()
    Job.declare_torchvision()
    python = environments.python_for("torchdistill", peer.REQUIREMENTS)
    sys.path.append(str(next((python.parent.parent / "lib").glob("python*")) / "site-packages"))
    budget = {
        "pair": "ResNet-56 to ResNet-20", "training_images": options.images, "epochs": options.epochs, "batch": BATCH,
        "lr": LR, "test_images": options.test_images, "precision": "fp32", "threads": torch.get_num_threads(),
        "weights": "both start from those published",
    }  # fmt: skip
    ledger = Ledger(RESULTS / "distill_peer.json", budget)
    x, y = images("train", options.images)
    rows, test = Stamped(normalised(x), y), scored("test")[: options.test_images // 500]
    for seed in range(options.seeds):
        for tool in TOOLS if seed % 2 == 0 else reversed(TOOLS):
            ledger.run("runs", tool, seed, lambda: run(tool, rows, options.epochs, seed, test))  # noqa: B023
    found = ledger.document["runs"]
    for tool, entry in found.items():
        each = [s for one in entry["runs"].values() for s in one["epoch_s"]]
        later = [s for one in entry["runs"].values() for s in one["epoch_s"][1:]]
        entry["median_epoch_s"], entry["median_later_epoch_s"] = statistics.median(each), statistics.median(later)
        entry |= length(written_out(tool))
    for tool, entry in found.items():
        entry["later_epoch_over_torchdistill"] = (
            entry["median_later_epoch_s"] / found["torchdistill"]["median_later_epoch_s"]
        )
        print(tool, {name: value for name, value in entry.items() if name != "runs"})
    ledger.save()


if __name__ == "__main__":
    main()
