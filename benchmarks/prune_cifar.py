"""Pruned CIFAR ResNets, hasten beside torch-pruning at equal multiply-accumulates and equal training.

    python benchmarks/prune_cifar.py choose --depth 20    # settings of both tools, on the validation part alone
    python benchmarks/prune_cifar.py table --depth 20 --seeds 3
    python benchmarks/prune_cifar.py table --depth 56 --seeds 1
    python benchmarks/prune_cifar.py compile --depth 56   # the same cuts for ONNX Runtime
    python benchmarks/prune_cifar.py latency --depth 56

Every row starts from the same fine-tuned network, is cut to at most 1/2.1 or 1/2.55 of its multiply-accumulates, and
sees the same images for the same number of epochs; growing regularisation spends the first third of its epochs before
the cut. The cut of hasten and the peak learning rate of each tool are those of `CUTS` and `RATES` that did best for it
with this network on validation images, at the smaller goal. The test set is scored once, after the last epoch; the
score before training is of validation images. torch-pruning cannot follow the padded shortcuts of these networks (its
cut does not run), so it is told to leave the residual stream alone. Rows named "taught" also learn from the uncut
network's answers; the others from labels alone. Data: see `cifar.py`.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator
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
from hasten_bench.material import cache as kept
from hasten_bench.peers import torch_pruning as peer

GOALS = (2.1, 2.55)
RATES = (0.05, 0.015, 0.005)
CUTS = (("replaceability", "inner"), ("weight_l2", "inner"), ("replaceability", "layer"))


@dataclass(frozen=True)
class Bench:
    """A dense network and what it is trained and judged on."""

    depth: int
    model: nn.Module
    task: hasten.Task
    train: Views
    schedule: Training

    @classmethod
    def of(cls, depth: int, images_: int, epochs: int, rate: float = 0.0) -> "Bench":
        x, y = images("train", max(images_, 1024))
        views = Views(x[:images_], y[:images_], epochs)
        model = dense(depth)
        calibration = [normalised(x[i : i + 128]) for i in range(0, 512, 128)]
        few = [(normalised(x[i : i + 128]), y[i : i + 128]) for i in range(0, 1024, 128)]
        task = hasten.Task(model, EXAMPLE, few, train=few, calibration=calibration, name="cifar10")
        schedule = Training(epochs=epochs, lr=rate, schedule="onecycle", weight_decay=5e-4, clip_norm=5.0)
        return cls(depth, model, task, views, schedule)

    @property
    def budget(self) -> dict[str, Any]:
        """What every row was given."""
        s = self.schedule
        return {
            "network": f"ResNet-{self.depth}", "training_images": len(self.train.x), "epochs": s.epochs,
            "batch": BATCH, "schedule": s.schedule, "weight_decay": s.weight_decay, "clip_norm": s.clip_norm,
            "reported": "last epoch, test set",
        }  # fmt: skip

    def at(self, rate: float) -> "Bench":
        """The same with this peak learning rate."""
        return replace(self, schedule=replace(self.schedule, lr=rate))


def filters(
    bench: Bench, goal: float, importance: Any, scope: Any, round_to: int = 1, refitted: int = 512
) -> GraphModule:
    """Filters at the smallest share that leaves 1/goal of the work; scope "inner" spares the residual stream."""
    graph = hasten.capture(bench.model, EXAMPLE)
    inner = [g.name for g in find_channels(graph).groups if g.name.endswith(".conv1")]

    def cut(share: float, by: Any, samples: int) -> GraphModule:
        options: dict[str, Any] = {"importance": by, "round_to": round_to, "reconstruct": samples}
        if scope == "inner":
            return PruneFilters(ratios=tuple((name, share) for name in inner), **options).apply(graph, bench.task)
        return PruneFilters(share, scope=scope, **options).apply(graph, bench.task)

    # Where every layer loses the same share, the quickest score leaves as much work as any.
    quick = importance if scope == "global" else "weight_l2"
    share = bisect(lambda share: cut(share, quick, 0), macs(graph) / goal)[1]
    return cut(share, importance, refitted)


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
    narrower = PruneFilters(importance="weight_l2", scope="layer", round_to=4, reconstruct=0)
    share = bisect(lambda share: replace(narrower, ratio=share).apply(best, bench.task), wanted)[1]
    return replace(narrower, ratio=share, reconstruct=512).apply(best, bench.task)


def bisect(cut: Callable[[float], nn.Module], wanted: float) -> tuple[Any, float]:
    """The cut at the smallest share that leaves at most `wanted` multiply-accumulates, and that share."""
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
    return found, high


def theirs(bench: Bench, goal: float) -> nn.Module:
    """torch-pruning's group L2 norm over all layers but those that write the residual stream."""
    tp = torch_pruning()
    wanted = macs(bench.model) / goal

    def cut(share: float) -> nn.Module:
        model = duplicate(bench.model).requires_grad_(True)
        importance = tp.importance.GroupMagnitudeImportance(p=2)
        tp.pruner.BasePruner(model, EXAMPLE, importance, pruning_ratio=share, ignored_layers=stream(model)).step()
        return model.eval()

    return bisect(cut, wanted)[0]


def grown(bench: Bench, goal: float, seed: int) -> nn.Module:
    """torch-pruning's growing regularisation for a third of the epochs, then its cut."""
    tp = torch_pruning()
    wanted = macs(bench.model) / goal
    model = duplicate(bench.model).requires_grad_(True)
    make = tp.pruner.GrowingRegPruner
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    pruner = make(model, EXAMPLE, importance, reg=1e-4, delta_reg=1e-4, ignored_layers=stream(model))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=bench.schedule.lr / 5, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
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

    return bisect(cut, wanted)[0]


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


def choices(depth: int) -> Path:
    """Where `choose` keeps what it found."""
    return RESULTS / f"prune_cifar_choices_resnet{depth}.json"


def choose(options: argparse.Namespace) -> None:
    """hasten's cut, judged refitted and untrained, and the rate of both tools, on validation images."""
    bench, goal = Bench.of(options.depth, options.images, options.epochs), GOALS[0]
    ledger = Ledger(choices(options.depth), bench.budget | {"reported": "last epoch, validation", "goal": goal})
    judged = scored("validation")
    if "baseline" not in ledger.document:
        ledger.note("baseline", {"top1": accuracy(bench.model, judged), "macs": macs(bench.model)})
    for importance, scope in CUTS:
        own = cache(lambda: filters(bench, goal, importance, scope))  # noqa: B023
        found = lambda: {"macs": macs(own()), "top1": accuracy(own(), judged)}  # noqa: B023, E731
        ledger.run("hasten cuts", json.dumps([importance, scope]), 0, found)
    chosen = best(ledger.document, "hasten cuts")
    own, peers = cache(lambda: filters(bench, goal, *chosen)), cache(lambda: theirs(bench, goal))
    for rate in RATES:
        taught = lambda: taught_run(bench.at(rate), own(), 0, judged)  # noqa: B023, E731
        ledger.run("hasten taught", json.dumps([rate]), 0, taught)
        labels = lambda: labelled_run(bench.at(rate), peers(), 0, judged)  # noqa: B023, E731
        ledger.run("torch-pruning", json.dumps([rate]), 0, labels)


def best(document: dict[str, Any], kind: str) -> list[Any]:
    """The settings of this kind that did best on validation."""
    return max((entry["mean_top1"], json.loads(name)) for name, entry in document[kind].items())[1]


def labelled_run(bench: Bench, model: nn.Module, seed: int, judged: Any, skipped: int = 0) -> dict[str, Any]:
    """Train on labels alone and score."""
    schedule = replace(bench.schedule, seed=seed, epochs=bench.schedule.epochs - skipped)
    trained = train(model, bench.train, F.cross_entropy, schedule)
    return {"macs": macs(model), "peak_lr": schedule.lr, "top1": accuracy(trained, judged)}


def taught_run(bench: Bench, graph: GraphModule, seed: int, judged: Any) -> dict[str, Any]:
    """Train with the uncut network's answers and score."""
    task = replace(bench.task, train=bench.train)
    schedule = replace(bench.schedule, seed=seed)
    trained = distilled(graph, task, answers(bench.model, bench.train), schedule)
    return {"macs": macs(graph), "peak_lr": schedule.lr, "top1": accuracy(trained, judged)}


def table(options: argparse.Namespace) -> None:
    """All rows at both goals, seed by seed."""
    bench = Bench.of(options.depth, options.images, options.epochs)
    ledger = Ledger(RESULTS / f"prune_cifar_resnet{options.depth}.json", bench.budget)
    test, validation = scored("test"), scored("validation")
    if "baseline" not in ledger.document:
        ledger.note("baseline", {"top1": accuracy(bench.model, test), "macs": macs(bench.model)})
    found = json.loads(choices(options.depth).read_text())
    importance, scope = best(found, "hasten cuts")
    own_bench, peer_bench = (bench.at(*best(found, kind)) for kind in ("hasten taught", "torch-pruning"))

    own = cache(lambda goal: filters(bench, goal, importance, scope))
    shorter = cache(lambda goal: blocks(bench, goal))
    peers = cache(lambda goal: theirs(bench, goal))
    rows: dict[str, Callable[[float, int], dict[str, Any]]] = {
        "hasten filters, taught": lambda goal, seed: taught_run(own_bench, own(goal), seed, test),
        "torch-pruning L2": lambda goal, seed: labelled_run(peer_bench, peers(goal), seed, test),
        "hasten filters": lambda goal, seed: labelled_run(own_bench, own(goal), seed, test),
        "hasten blocks, taught": lambda goal, seed: taught_run(own_bench, shorter(goal), seed, test),
        "torch-pruning growing": lambda goal, seed: labelled_run(
            peer_bench, grown(peer_bench, goal, seed), seed, test, options.epochs // 3
        ),
        "hasten blocks": lambda goal, seed: labelled_run(own_bench, shorter(goal), seed, test),
    }
    dense_on = lambda: labelled_run(own_bench, bench.model, seed, test)  # noqa: E731
    for seed in range(options.seeds):
        for goal in options.goals:
            for name in options.rows or rows:
                ledger.run(f"{goal}x", name, seed, lambda: rows[name](goal, seed))  # noqa: B023
        if options.rows is None:
            ledger.run("dense", "dense, trained on", seed, dense_on)
    for goal in options.goals:
        before: dict[str, Callable[[], nn.Module]] = {
            "hasten filters": lambda: own(goal),  # noqa: B023
            "hasten filters, not refitted": lambda: filters(bench, goal, importance, scope, refitted=0),  # noqa: B023
            "torch-pruning L2": lambda: peers(goal),  # noqa: B023
        }
        for name, cut in before.items():
            measured = lambda: {"macs": macs(cut()), "validation_top1": accuracy(cut(), validation)}  # noqa: B023, E731
            ledger.run(f"{goal}x, before training", name, 0, measured)


def cuts(bench: Bench) -> Iterator[tuple[str, nn.Module]]:
    """The dense network and every cut by name; training does not change how long they take."""
    found = json.loads(choices(bench.depth).read_text())
    importance, scope = best(found, "hasten cuts")
    yield "dense", bench.model
    for goal in GOALS:
        yield f"{goal}x hasten filters", filters(bench, goal, importance, scope)
        yield f"{goal}x hasten filters, widths of 8", filters(bench, goal, importance, scope, 8)
        yield f"{goal}x hasten blocks", blocks(bench, goal)
        yield f"{goal}x torch-pruning L2", theirs(bench, goal)


def artifacts(depth: int) -> Path:
    """The folder where `compile` leaves them for `latency`."""
    return kept() / "cifar" / f"cuts-resnet{depth}"


def compile_(options: argparse.Namespace) -> None:
    """Artifacts of the dense network and every cut for ONNX Runtime."""
    bench = Bench.of(options.depth, BATCH, 1)
    example = (torch.randn(2, 3, 32, 32),)
    task = hasten.Task(bench.model, example, holdout=[example[0]])
    shutil.rmtree(artifacts(options.depth), ignore_errors=True)
    for name, model in cuts(bench):
        graph = model if isinstance(model, GraphModule) else hasten.capture(model, example)
        artifacts(options.depth).mkdir(parents=True, exist_ok=True)
        hasten.compile(graph, task, "onnxruntime", artifacts(options.depth) / f"{name}.hasten")
        (artifacts(options.depth) / f"{name}.macs").write_text(str(macs(model)))
        print(name, macs(model), flush=True)


def latency(options: argparse.Namespace) -> None:
    """Latency at batch 1 and 128 of what `compile` left, interleaved. On a quiet machine."""
    ledger = Ledger(RESULTS / f"prune_cifar_latency_resnet{options.depth}.json", {"runtime": "onnxruntime"})
    paths = sorted(artifacts(options.depth).glob("*.hasten"), key=lambda path: path.stem != "dense")
    for batch in (1, 128):
        times = time_artifacts(paths, batch=batch, turns=options.turns)
        rows: dict[str, Any] = {}
        for path in paths:
            work = float(path.with_name(f"{path.name.removesuffix('.hasten')}.macs").read_text())
            rows[path.name.removesuffix(".hasten")] = times[str(path)].to_json() | {"macs": work}
        ledger.note(f"batch_{batch}", rows)
        for name, row in rows.items():
            print(f"batch {batch:3} {name:40} {row['macs'] / 1e6:6.1f} MMAC {row['ratio']:.2f}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("choose", "table", "compile", "latency"))
    parser.add_argument("--depth", type=int, default=56, choices=(20, 56))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=10240)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--goals", nargs="*", type=float, default=list(GOALS), help="times fewer multiply-accumulates")
    parser.add_argument("--rows", nargs="*", help="only these")
    options = parser.parse_args()
    {"choose": choose, "table": table, "compile": compile_, "latency": latency}[options.command](options)


if __name__ == "__main__":
    main()
