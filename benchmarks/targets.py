"""Compile one small network for every usable target: agreement with the graph, and speed in turns where it is timed.

python benchmarks/targets.py --out benchmarks/results/targets.json
hasten targets docs --measured benchmarks/results/targets.json > docs/targets.md
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.graph.capture import capture
from hasten.machine import cpu_name, usable_cores
from hasten.measure.arrays import ArrayFile
from hasten.measure.latency import compare
from hasten.measure.worker import Worker
from hasten.recipe import Target, describe, make_target, make_technique, name_of
from hasten.recipe import targets as all_targets
from hasten.search.space import variants
from hasten.task import Task


class Perceptron(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))


class Convolutional(nn.Sequential):
    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for inside, outside, stride in ((3, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1)):
            layers += [nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def task_of(model: nn.Module, shape: tuple[int, ...]) -> Task:
    x = torch.randn(32, *shape, generator=torch.Generator().manual_seed(0))
    return Task(model=model.eval(), example=(x[:1],), holdout=[(x, torch.zeros(32, dtype=torch.int64))])


def judge(target: Target, folder: Path, compiled: Path, timing: bool) -> dict[str, Any]:
    """One row: error on 8 rows against the graph, ratio to eager, and the report."""
    row: dict[str, Any] = {"target": describe(target), "evidence": target.evidence}
    integers = name_of(target) == "fpga"
    task = task_of(Perceptron() if integers else Convolutional(), (1, 8, 8) if integers else (3, 32, 32))
    graph = capture(task.model, task.example)
    if integers:
        graph = make_technique("quantize", {"placement": "symmetric"}).apply(graph, task)
    try:
        target.compile(graph, task, compiled)
        x = task.holdout[0][0][:8]  # type: ignore[index]
        with torch.no_grad():
            expected = graph(x).numpy()
        found = target.load(compiled)(x.numpy())[0]
        row["error"] = float(np.abs(found - expected).max() / np.abs(expected).max())
        if (compiled / "report.json").exists():
            row["report"] = brief(json.loads((compiled / "report.json").read_text()))
        if timing and target.evidence == "timed":
            row |= timed(target, compiled, folder, task, graph)
    except HastenError as error:
        row["failure"] = str(error)[:200]
    return row


def timed(target: Target, compiled: Path, folder: Path, task: Task, graph: Any) -> dict[str, Any]:
    """Ratio to eager with its interval, both in processes of their own, in turns."""
    eager = make_target("eager")
    base = folder / "eager"
    if not base.exists():
        base.mkdir()
        eager.compile(graph, task, base)
    path = folder / "x.bin"
    x = task.example[0].numpy()
    path.write_bytes(x.tobytes())
    inputs = [ArrayFile(path, x.shape, str(x.dtype))]
    with Worker(eager, base, folder / "eager.log") as a, Worker(target, compiled, folder / "log") as b:
        found = compare({"eager": a, "other": b}, "eager", inputs, batch=1, turns=15)["other"]
    return {"ratio": found.ratio, "low": found.ratio_low, "high": found.ratio_high}


def brief(report: dict[str, Any]) -> str:
    """The report in a line."""
    flat = {k: v for k, v in report.items() if not isinstance(v, dict)}
    for value in report.values():
        if isinstance(value, dict):
            flat |= value
    return ", ".join(f"{k} {v}" for k, v in flat.items() if k != "evidence")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--targets", default="")
    parser.add_argument("--untimed", action="store_true", help="Agreement and reports alone, for a busy machine.")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    names = arguments.targets.split(",") if arguments.targets else [n for n in all_targets() if n != "null"]
    network = (
        "A convolutional network (5 convolutions of 32 to 128 channels, 32 x 32 pixels, random weights); for `fpga` a "
        "perceptron 64-32-16-10, quantized to 8 bits"
    )
    machine = f"{cpu_name()}, {usable_cores()} cores"
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            for index, target in enumerate(variants(all_targets()[name])):
                folder = Path(scratch) / f"{name}_{index}"
                (folder / "compiled").mkdir(parents=True)
                if missing := target.missing():
                    rows.append({"target": name, "evidence": target.evidence, "failure": f"needs: {missing}"})
                else:
                    rows.append(judge(target, folder, folder / "compiled", not arguments.untimed))
                print(rows[-1], flush=True)
                # Written after every row: a run that is cut off keeps what it measured.
                found = {"network": network, "machine": machine, "rows": rows}
                arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
