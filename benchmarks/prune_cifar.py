"""Pruned CIFAR ResNets, hasten beside torch-pruning at equal multiply-accumulates and equal training.

    python benchmarks/prune_cifar.py choose               # settings of both tools, on the validation part alone
    python benchmarks/prune_cifar.py table --depth 20 --seeds 3
    python benchmarks/prune_cifar.py table --depth 56 --seeds 1
    python benchmarks/prune_cifar.py latency --depth 56   # of the same cuts, in ONNX Runtime

Every row starts from the same fine-tuned network, is cut to at most 1/2.1 or 1/2.55 of its multiply-accumulates, and
sees the same images for the same number of epochs under the same schedule; growing regularisation spends the first
third of its epochs before the cut. The test set is scored once, after the last epoch. torch-pruning cannot follow the
padded shortcuts of these networks (its cut does not run), so it is told to leave the residual stream alone.
Rows named "taught" also learn from the uncut network's answers; the others from labels alone. Data: see `cifar.py`.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule

import hasten
from cifar import BATCH, EXAMPLE, RESULTS, Ledger, Views, accuracy, dense, images, macs, normalised, scored
from cifar_teacher import answers, distilled
from hasten.graph.channels import find_channels
from hasten.graph.duplicate import duplicate
from hasten.measure.artifacts import time_artifacts
from hasten.techniques.prune_filters import PruneFilters
from hasten.techniques.shrink import Shrink
from hasten.training import Training, train
from hasten_bench import environments
from hasten_bench.peers import torch_pruning as peer

GOALS = (2.1, 2.55)
CHOICES = RESULTS / "prune_cifar_choices.json"


@dataclass(frozen=True)
class Bench:
    """A dense network and what it is trained and judged on."""

    depth: int
    model: nn.Module
    task: hasten.Task
    train: Views
    schedule: Training

    @classmethod
    def of(cls, depth: int, images_: int, epochs: int) -> "Bench":
        x, y = images("train", max(images_, 1024))
        views = Views(x[:images_], y[:images_], epochs)
        model = dense(depth)
        calibration = [normalised(x[i : i + 128]) for i in range(0, 512, 128)]
        few = [(normalised(x[i : i + 128]), y[i : i + 128]) for i in range(0, 1024, 128)]
        task = hasten.Task(model, EXAMPLE, few, train=few, calibration=calibration, name="cifar10")
        schedule = Training(epochs=epochs, lr=0.05, schedule="onecycle", weight_decay=5e-4, clip_norm=5.0)
        return cls(depth, model, task, views, schedule)

    @property
    def budget(self) -> dict[str, Any]:
        """What every row was given."""
        s = self.schedule
        return {
            "network": f"ResNet-{self.depth}", "training_images": len(self.train.x), "epochs": s.epochs,
            "batch": BATCH, "peak_lr": s.lr, "schedule": s.schedule, "weight_decay": s.weight_decay,
            "clip_norm": s.clip_norm, "reported": "last epoch, test set",
        }  # fmt: skip


def filters(bench: Bench, goal: float, importance: Any, scope: Any, round_to: int = 1) -> GraphModule:
    """Filters at the smallest share that leaves 1/goal of the work; scope "inner" spares the residual stream."""
    graph = hasten.capture(bench.model, EXAMPLE)
    wanted = macs(graph) / goal
    inner = [g.name for g in find_channels(graph).groups if g.name.endswith(".conv1")]

    def cut(share: float) -> GraphModule:
        if scope == "inner":
            ratios = tuple((name, share) for name in inner)
            return PruneFilters(importance=importance, round_to=round_to, ratios=ratios).apply(graph, bench.task)
        return PruneFilters(share, importance, scope, round_to=round_to).apply(graph, bench.task)

    return bisect(cut, wanted)


def blocks(bench: Bench, goal: float) -> GraphModule:
    """Whole residual blocks as long as more than 1/goal of the work is left, then filters of the rest."""
    graph = hasten.capture(bench.model, EXAMPLE)
    wanted, best = macs(graph) / goal, graph
    for share in (x / 27 for x in range(26, 0, -1)):
        try:
            shorter = Shrink(depth=share).apply(graph, bench.task)
        except hasten.errors.Unsupported:  # rounds to all of them
            continue
        if macs(shorter) < wanted:
            break
        best = shorter
    if macs(best) <= wanted:
        return best
    return bisect(lambda share: PruneFilters(share, "weight_l2", "layer", round_to=4).apply(best, bench.task), wanted)


def bisect(cut: Callable[[float], nn.Module], wanted: float) -> Any:
    """The cut at the smallest share that leaves at most `wanted` multiply-accumulates."""
    low, high = 0.01, 0.9
    found = None
    for _ in range(9):
        middle = (low + high) / 2
        try:
            candidate = cut(middle)
        except hasten.errors.Unsupported:  # too little to cut after rounding
            low = middle
            continue
        if macs(candidate) <= wanted:
            found, high = candidate, middle
        else:
            low = middle
    return found


def theirs(bench: Bench, goal: float, norm: int, everywhere: bool) -> nn.Module:
    """torch-pruning's group norm over all layers but those that write the residual stream."""
    tp = torch_pruning()
    wanted = macs(bench.model) / goal

    def cut(share: float) -> nn.Module:
        model = duplicate(bench.model).requires_grad_(True)
        importance = tp.importance.GroupMagnitudeImportance(p=norm)
        tp.pruner.BasePruner(
            model, EXAMPLE, importance, pruning_ratio=share, global_pruning=everywhere, ignored_layers=stream(model)
        ).step()
        return model.eval()

    return bisect(cut, wanted)


def grown(bench: Bench, goal: float, seed: int) -> nn.Module:
    """torch-pruning's growing regularisation for a third of the epochs, then its cut."""
    tp = torch_pruning()
    wanted = macs(bench.model) / goal
    model = duplicate(bench.model).requires_grad_(True)
    make = tp.pruner.GrowingRegPruner
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    pruner = make(model, EXAMPLE, importance, reg=1e-4, delta_reg=1e-4, ignored_layers=stream(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    model.train()
    torch.manual_seed(seed)
    for epoch in range(bench.schedule.epochs // 3):
        bench.train.set_epoch(epoch)
        for step, (x, y) in enumerate(bench.train):
            with torch.autocast("cpu", torch.bfloat16):
                output = model(x)
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(output.float(), y))
            pruner.regularize(model)
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            if step % 5 == 4:
                pruner.update_reg()
    model.eval()

    def cut(share: float) -> nn.Module:
        copy = duplicate(model)
        tp.pruner.BasePruner(
            copy, EXAMPLE, importance, pruning_ratio=share, global_pruning=True, ignored_layers=stream(copy)
        ).step()
        return copy.eval()

    return bisect(cut, wanted)


def stream(model: Any) -> list[nn.Module]:
    """The layers that write the residual stream, and the last one."""
    layers = [block.conv2 for stage in (model.layer1, model.layer2, model.layer3) for block in stage]
    return [model.conv1, *layers, model.linear]


def torch_pruning() -> Any:
    """The pinned peer, from its own environment, behind everything installed here."""
    python = environments.python_for("torch_pruning", peer.REQUIREMENTS)
    folder = str(next((python.parent.parent / "lib").glob("python*")) / "site-packages")
    if folder not in sys.path:
        sys.path.append(folder)
    import torch_pruning

    return torch_pruning


def choose(options: argparse.Namespace) -> None:
    """Score and scope for both tools: ResNet-20 at the larger goal, an epoch on labels, judged on validation images."""
    bench = Bench.of(20, options.images, 1)
    ledger = Ledger(CHOICES, bench.budget | {"reported": "last epoch, validation", "goal": GOALS[1]})
    judged = scored("validation")
    candidates: dict[str, Callable[[], nn.Module]] = {}
    for importance in ("activation_l2", "weight_l2", "taylor"):
        for scope in ("global", "layer", "inner"):
            key = json.dumps(["hasten", importance, scope])
            candidates[key] = lambda i=importance, s=scope: filters(bench, GOALS[1], i, s)  # type: ignore[misc]
    for norm in (1, 2):
        for everywhere in (False, True):
            key = json.dumps(["torch-pruning", norm, everywhere])
            candidates[key] = lambda n=norm, e=everywhere: theirs(bench, GOALS[1], n, e)  # type: ignore[misc]
    for name, cut in candidates.items():
        ledger.run("choose", name, 0, lambda: labelled_run(bench, cut(), 0, judged))  # noqa: B023


def chosen(tool: str, first: Any = None) -> list[Any]:
    """The settings that did best on validation, among those whose first setting is `first`."""
    rows = json.loads(CHOICES.read_text())["choose"]
    found = [(entry["mean_top1"], json.loads(name)) for name, entry in rows.items()]
    return max((top1, row[1:]) for top1, row in found if row[0] == tool and first in (None, row[1]))[1]


def labelled_run(bench: Bench, model: nn.Module, seed: int, judged: Any, skipped: int = 0) -> dict[str, Any]:
    """Train on labels alone and score."""
    schedule = replace(bench.schedule, seed=seed, epochs=bench.schedule.epochs - skipped)
    found = {"macs": macs(model), "top1_before": accuracy(model, judged[:4])}
    return found | {"top1": accuracy(train(model, bench.train, F.cross_entropy, schedule), judged)}


def taught_run(bench: Bench, graph: GraphModule, seed: int, judged: Any) -> dict[str, Any]:
    """Train with the uncut network's answers and score."""
    task = replace(bench.task, train=bench.train)
    schedule = replace(bench.schedule, seed=seed)
    known = answers(bench.model, bench.train)
    return {"macs": macs(graph), "top1": accuracy(distilled(graph, task, known, schedule), judged)}


def table(options: argparse.Namespace) -> None:
    """All rows at both goals, seed by seed."""
    bench = Bench.of(options.depth, options.images, options.epochs)
    ledger = Ledger(RESULTS / f"prune_cifar_resnet{options.depth}.json", bench.budget)
    test = scored("test")
    if "baseline" not in ledger.document:
        ledger.note("baseline", {"top1": accuracy(bench.model, test), "macs": macs(bench.model)})
    importance, scope = chosen("hasten")
    for seed in range(options.seeds):
        ledger.run("dense", "dense, trained on", seed, lambda: labelled_run(bench, bench.model, seed, test))  # noqa: B023
        for goal in GOALS:
            own = cache(lambda: filters(bench, goal, importance, scope))  # noqa: B023
            shorter = cache(lambda: blocks(bench, goal))  # noqa: B023
            rows: dict[str, Callable[[], dict[str, Any]]] = {
                "hasten filters, taught": lambda: taught_run(bench, own(), seed, test),  # noqa: B023
                "torch-pruning L2": lambda: labelled_run(bench, of_norm(bench, goal, 2), seed, test),  # noqa: B023
                "hasten blocks, taught": lambda: taught_run(bench, shorter(), seed, test),  # noqa: B023
                "torch-pruning L1": lambda: labelled_run(bench, of_norm(bench, goal, 1), seed, test),  # noqa: B023
                "torch-pruning growing": lambda: labelled_run(
                    bench, grown(bench, goal, seed), seed, test, options.epochs // 3  # noqa: B023
                ),
                "hasten filters": lambda: labelled_run(bench, own(), seed, test),  # noqa: B023
                "hasten blocks": lambda: labelled_run(bench, shorter(), seed, test),  # noqa: B023
            }  # fmt: skip
            for name, run in rows.items():
                if options.rows is None or name in options.rows:
                    ledger.run(f"{goal}x", name, seed, run)


def of_norm(bench: Bench, goal: float, norm: int) -> nn.Module:
    """torch-pruning's cut with the scope that did best for this norm."""
    return theirs(bench, goal, *chosen("torch-pruning", norm))


def latency(options: argparse.Namespace) -> None:
    """Latency at batch 1 and 128 of the dense network and every cut, interleaved; training does not change it."""
    bench = Bench.of(options.depth, BATCH, 1)
    ledger = Ledger(RESULTS / f"prune_cifar_latency_resnet{options.depth}.json", {"runtime": "onnxruntime"})
    importance, scope = chosen("hasten")
    cuts: dict[str, nn.Module] = {"dense": bench.model}
    for goal in GOALS:
        cuts[f"{goal}x hasten filters"] = filters(bench, goal, importance, scope)
        cuts[f"{goal}x hasten filters, widths of 8"] = filters(bench, goal, importance, scope, 8)
        cuts[f"{goal}x hasten blocks"] = blocks(bench, goal)
        for norm in (1, 2):
            cuts[f"{goal}x torch-pruning L{norm}"] = of_norm(bench, goal, norm)
    example = (torch.randn(2, 3, 32, 32),)
    task = hasten.Task(bench.model, example, holdout=[example[0]])
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{index}.hasten" for index, name in enumerate(cuts)}
        for name, path in paths.items():
            model = cuts[name]
            graph = model if isinstance(model, GraphModule) else hasten.capture(model, example)
            hasten.compile(graph, task, "onnxruntime", path)
        if options.wait is not None:
            input(options.wait)
        for batch in (1, 128):
            times = time_artifacts(list(paths.values()), batch=batch, turns=options.turns)
            rows = {name: times[str(path)].to_json() | {"macs": macs(cuts[name])} for name, path in paths.items()}
            ledger.note(f"batch_{batch}", rows)
            for name, row in rows.items():
                print(f"batch {batch:3} {name:40} {row['macs'] / 1e6:6.1f} MMAC {row['ratio']:.2f}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("choose", "table", "latency"))
    parser.add_argument("--depth", type=int, default=56, choices=(20, 56))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=10240)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--rows", nargs="*", help="only these")
    parser.add_argument("--wait", help="stop before timing with this prompt")
    options = parser.parse_args()
    {"choose": choose, "table": table, "latency": latency}[options.command](options)


if __name__ == "__main__":
    main()
