"""Is the doctor right? Whole diagnoses of four networks, and the advice on ten held against what it brings.

    python benchmarks/doctor.py whole [NETWORK ...]    time whole diagnoses; their sums of layers, their floors
    python benchmarks/doctor.py make [NETWORK ...]     compile all dry runs, and what their recipes really make
    python benchmarks/doctor.py time [NETWORK ...]     predictions from the dry runs, then the gains, in turns
    python benchmarks/doctor.py page                   print the tables of docs/doctor.md

Only `whole` and `time` need the machine to themselves. The prediction is the doctor's own (`race`, `advise`); the gain
is that of the advised recipe made in full, with calibration and all, timed in turns with the subject as it was.
"""

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hasten
import int8_networks
from hasten.diagnosis.advice import advise
from hasten.diagnosis.doctor import race
from hasten.diagnosis.findings import Patient
from hasten.diagnosis.versions import Maker, Version, batch_of
from hasten.graph.capture import capture, has_dynamic_batch
from hasten.machine import fingerprint
from hasten.measure.arrays import ArrayWriter
from hasten.measure.latency import Latency, compare
from hasten.measure.worker import Worker
from hasten.recipe import Recipe, name_of
from hasten_bench.nets import cifar_resnet, mobilenet_v2

RESULTS = Path(__file__).parent / "results" / "doctor.json"
MADE = Path(os.environ.get("HASTEN_BENCH_CACHE", Path.home() / ".cache" / "hasten-bench")) / "doctor"
TURNS = 9
CLOSE = 0.25
WHOLE = ("resnet-50", "efficientnet-lite0", "minilm", "cifar-resnet-56")


class First(nn.Module):
    """The first output of a transformers model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[0]


def vision(config: str, model: str, size: int = 224, **options: Any) -> hasten.Task:
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(return_dict=False, **options)).eval()
    return of(First(made), torch.randn(4, 3, size, size))


def text(config: str, model: str, **options: Any) -> hasten.Task:
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(return_dict=False, **options)).eval()
    return of(First(made), torch.randint(0, 1000, (4, 128)))


def of(model: nn.Module, x: Tensor) -> hasten.Task:
    return hasten.Task(model, (x,), holdout=[x], calibration=[x])


def known(name: str) -> hasten.Task:
    net = int8_networks.NETWORKS[name]()
    example = tuple(torch.cat(parts) for parts in zip(*net.calibration[:4], strict=True))
    return hasten.Task(net.model, example, holdout=[(example, None)], calibration=net.calibration[:16])


def cifar(depth: int) -> hasten.Task:
    torch.manual_seed(0)
    return of(cifar_resnet.network(depth).eval(), torch.randn(4, 3, 32, 32))


def mobilenet() -> hasten.Task:
    torch.manual_seed(0)
    return of(mobilenet_v2.network().eval(), torch.randn(4, 3, 224, 224))


NETWORKS: dict[str, Callable[[], hasten.Task]] = {
    "efficientnet-lite0": lambda: known("efficientnet-lite0"),
    "minilm": lambda: known("minilm"),
    "resnet-50": lambda: known("resnet-50"),
    "cifar-resnet-56": lambda: cifar(56),
    "mobilenet-v2": mobilenet,
    "resnet-18": lambda: vision(
        "ResNetConfig", "ResNetForImageClassification", layer_type="basic", hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2]),
    "vit-small": lambda: vision(
        "ViTConfig", "ViTForImageClassification", hidden_size=384, num_hidden_layers=6, num_attention_heads=6,
        intermediate_size=1536),
    "distilbert": lambda: text("DistilBertConfig", "DistilBertForSequenceClassification", n_layers=4),
    "bert-small": lambda: text(
        "BertConfig", "BertForSequenceClassification", hidden_size=512, num_hidden_layers=4, num_attention_heads=8,
        intermediate_size=2048),
    "regnet": lambda: vision(
        "RegNetConfig", "RegNetForImageClassification", embedding_size=32, hidden_sizes=[24, 56, 152, 368],
        depths=[1, 1, 4, 7], groups_width=8, layer_type="x"),
}  # fmt: skip


def whole(name: str) -> dict[str, Any]:
    """A whole diagnosis as a person gets it: how long it takes, whether its parts add up."""
    task = NETWORKS[name]()
    started = time.perf_counter()
    found = hasten.doctor(task).to_json()
    seconds = time.perf_counter() - started
    floors = [row for v in found["versions"] for row in v["rows"] if row["floor_us"]]
    return {
        "seconds": seconds,
        "sum_over_whole": {v["name"]: v["sum_over_whole"] for v in found["versions"]},
        "floors_above_measured": sum(row["floor_us"] > row["time_us"] for row in floors),
        "floors": len(floors),
        "least_ms": found["ceilings_ms"],
        "median_ms": {k: v["median_ms"] for k, v in found["latency"].items()},
        "failed": found["failed"],
    }


@dataclass(frozen=True)
class Stored:
    """Stands where a `Maker` does: the pruned versions that `make` compiled."""

    versions: Sequence[Version]

    def pruned(self, version: Version) -> Version:
        """The pruned form of `version`, or a version that says it was not made."""
        for made in self.versions:
            if made.kind == "prune" and made.name.startswith(f"{version.name}, half"):
                return made
        return replace(version, kind="prune", failure="not made")


def make(name: str) -> None:
    """Compile the dry runs of a network as the doctor does, and every recipe of theirs in full."""
    folder = MADE / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "dry").mkdir(parents=True)
    task = NETWORKS[name]().inner
    graph = capture(task.model, task.example)
    inputs = batch_of(task.example, not has_dynamic_batch(graph))
    maker = Maker(graph, replace(task, calibration=[task.example]), folder / "dry")
    versions = [*maker.as_it_is(), *maker.quantized()]
    with tempfile.TemporaryDirectory() as scratch:  # which is quickest decides which one the doctor would prune
        ran = race(Patient(name, versions, inputs, maker), Path(scratch))  # type: ignore[arg-type]
    versions += [v for v in ran.more if v.kind == "prune"]
    finished: dict[Any, Path] = {}
    for index, version in enumerate(v for v in versions if v.kind != "now" and not v.failure):
        if (key := _files(version.recipe)) not in finished:
            finished[key] = hasten.apply(version.recipe, task, folder / f"finished_{index}").path
    rows = []
    for version in versions:
        done = finished.get(_files(version.recipe))
        plain = {"name": version.name, "kind": version.kind, "precision": version.precision,
                 "failure": version.failure, "recipe": version.recipe.to_yaml()}  # fmt: skip
        rows.append(plain | {"folder": str(version.folder), "finished": str(done or "")})
    np.savez(folder / "inputs.npz", *inputs)
    (folder / "versions.json").write_text(json.dumps(rows, indent=1))


def _files(recipe: Recipe) -> tuple[Any, str]:
    """What decides the compiled files: precisions and threads of a runtime share them."""
    return recipe.steps, name_of(recipe.target)


def timed(name: str) -> dict[str, Any]:
    """What the doctor predicts from the dry runs, and what the advised recipes bring."""
    folder = MADE / name
    rows = json.loads((folder / "versions.json").read_text())
    versions = [_version(row) for row in rows]
    with np.load(folder / "inputs.npz") as stored:
        inputs = [stored[key] for key in stored.files]
    started = time.perf_counter()
    base = [v for v in versions if v.kind != "prune"]
    with tempfile.TemporaryDirectory() as scratch:
        ran = race(Patient(name, base, inputs, Stored(versions)), Path(scratch))  # type: ignore[arg-type]
        advice = advise([*base, *ran.more], ran.latencies)
        finished = {_files(v.recipe): Path(r["finished"]) for v, r in zip(versions, rows, strict=True) if r["finished"]}
        advised = [Recipe.from_yaml(a.recipe) for a in advice]
        got = _gains(versions[0], [(recipe, finished.get(_files(recipe))) for recipe in advised], inputs, Path(scratch))
    found = []
    for a, latency in zip(advice, got, strict=True):
        row = {"kind": a.kind, "words": a.words, "predicted_gain": a.predicted_gain, "low": a.low, "high": a.high}
        if latency is not None:
            row |= {"got_gain": latency.ratio, "got_low": latency.ratio_low, "got_high": latency.ratio_high,
                    "got_over_predicted": latency.ratio / a.predicted_gain}  # fmt: skip
        found.append(row)
    close = [abs(a["got_over_predicted"] - 1) <= CLOSE for a in found if "got_over_predicted" in a]
    return {
        "seconds": time.perf_counter() - started,
        "advice": found,
        "all_close": len(close) == len(found) and all(close),
    }


def _version(row: dict[str, Any]) -> Version:
    recipe = Recipe.from_yaml(row["recipe"])
    return Version(row["name"], row["kind"], recipe, row["precision"], Path(row["folder"]), row["failure"])


def _gains(
    original: Version, made: list[tuple[Recipe, Path | None]], inputs: list[np.ndarray], scratch: Path
) -> list[Latency | None]:
    """The finished artifacts in turns with the subject as it was; None for one that `make` did not make."""
    files = [ArrayWriter(scratch / f"{i}.bin", x).close() for i, x in enumerate(inputs)]
    with contextlib.ExitStack() as stack:
        workers = {"original": stack.enter_context(Worker(original.target, original.folder, scratch / "log.txt"))}
        for recipe, folder in made:
            if folder is not None:
                worker = Worker(recipe.target, folder, scratch / "log.txt")
                workers[recipe.to_yaml()] = stack.enter_context(worker)
        found = compare(workers, "original", files, turns=TURNS)
    return [found.get(recipe.to_yaml()) for recipe, _ in made]


def page(results: dict[str, Any]) -> str:
    """The tables of docs/doctor.md."""
    lines = [
        "| network | whole diagnosis, s | sum of layers / whole, by program | floors above measured |",
        "|---|---:|---|---:|",
    ]
    for name, found in results.get("whole", {}).items():
        sums = sorted(found["sum_over_whole"].values())
        inside = sum(abs(x - 1) <= 0.1 for x in sums)
        said = f"{sums[0]:.2f} to {sums[-1]:.2f}; within 10% in {inside} of {len(sums)}"
        above = f"{found['floors_above_measured']} of {found['floors']}"
        lines.append(f"| {name} | {found['seconds']:.0f} | {said} | {above} |")
    lines += ["", "| network | advice | predicted | got | got / predicted |", "|---|---|---:|---:|---:|"]
    for name, found in results.get("advice", {}).items():
        for index, a in enumerate(found["advice"]):
            got, share = "not made", ""
            if "got_gain" in a:
                got, share = f"{a['got_gain']:.2f}", f"{a['got_over_predicted']:.2f}"
            label = name if index == 0 else ""
            lines.append(f"| {label} | {a['words']} | {a['predicted_gain']:.2f} | {got} | {share} |")
    close = sum(found["all_close"] for found in results.get("advice", {}).values())
    lines += [
        "",
        f"All advice within {CLOSE:.0%} of what was predicted: {close} of {len(results.get('advice', {}))} networks.",
    ]
    return "\n".join(lines)


def main(command: str, names: list[str]) -> None:
    """Run one command on some networks, or on all."""
    logging.disable(logging.WARNING)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if command == "page":
        print(page(results))
        return
    for name in names or (WHOLE if command == "whole" else NETWORKS):
        started = time.perf_counter()
        if command == "make":
            make(name)
        else:
            key = {"whole": "whole", "time": "advice"}[command]
            results.setdefault(key, {})[name] = found = whole(name) if command == "whole" else timed(name)
            results |= {"machine": fingerprint(), "turns": TURNS, "close": CLOSE}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            print(json.dumps(found), flush=True)
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
