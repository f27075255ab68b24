"""Compile one small network for every usable target: agreement with the graph, reports, and speed where it is timed.

python benchmarks/targets.py compile --work build/targets     minutes: everything but times, for a busy machine
python benchmarks/targets.py time --work build/targets        a minute or two: times of what was compiled, in turns
hasten targets docs --measured benchmarks/results/targets.json > docs/targets.md
"""

import argparse
import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule

from hasten import environments
from hasten.errors import HastenError
from hasten.graph.capture import capture
from hasten.machine import cpu_name, usable_cores
from hasten.measure.arrays import ArrayFile
from hasten.measure.latency import compare
from hasten.measure.worker import Worker
from hasten.recipe import Target, describe, make_target, make_technique, name_of, options_of
from hasten.recipe import targets as all_targets
from hasten.search.space import variants
from hasten.task import Task

NETWORK = (
    "A convolutional network (5 convolutions of 32 to 128 channels, 32 x 32 pixels, random weights); for logic of "
    "`fpga` a perceptron 64-32-16-10, quantized to 8 bits"
)
# What is worth a row beside each target's own precisions.
MORE: dict[str, list[dict[str, Any]]] = {
    "tpu": [{"chip": chip} for chip in ("v4", "v5p", "v6e")],
    "fpga": [{"synthesis": "xilinx"}, {"synthesis": "ecp5"}, {"flow": "hls"}],
}


@dataclass(frozen=True)
class Row:
    """A target, and whether the graph is quantized for it."""

    target: Target
    quantized: bool

    @property
    def name(self) -> str:
        return describe(self.target) + (", Quantize" if self.quantized else "")

    @property
    def logic(self) -> bool:
        return name_of(self.target) == "fpga" and options_of(self.target)["flow"] != "hls"


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


def rows_of(names: list[str]) -> list[Row]:
    """Every target at every precision, then with `MORE`, then with a quantized graph if it is timed and takes one."""
    found = []
    for name in names:
        part = all_targets()[name]
        targets = [*variants(part), *(make_target(name, options) for options in MORE.get(name, []))]
        placed = bool(getattr(part, "placements", ()))
        found += [Row(target, name == "fpga") for target in targets]
        found += [Row(part(), True)] if placed and part.evidence == "timed" else []
    return found


def graph_of(row: Row) -> tuple[Task, GraphModule]:
    torch.manual_seed(0)
    task = task_of(Perceptron() if row.logic else Convolutional(), (1, 8, 8) if row.logic else (3, 32, 32))
    graph = capture(task.model, task.example)
    if row.quantized:
        placement = getattr(row.target, "placements", ("symmetric",))[0]
        graph = make_technique("quantize", {"placement": placement}).apply(graph, task)
    return task, graph


def compiled(row: Row, folder: Path) -> dict[str, Any]:
    """Error on 8 rows against the graph, and the report."""
    made: dict[str, Any] = {"target": row.name, "evidence": row.target.evidence}
    if missing := row.target.missing():
        return made | {"failure": f"needs: {missing}"}
    task, graph = graph_of(row)
    folder.mkdir(parents=True)
    try:
        row.target.compile(graph, task, folder)
        x = task.holdout[0][0][:8]  # type: ignore[index]
        with torch.no_grad():
            expected = graph(x).numpy()
        found = row.target.load(folder)(x.numpy())[0]
        made["error"] = float(np.abs(found - expected).max() / np.abs(expected).max())
        if (folder / "report.json").exists():
            made["report"] = brief(json.loads((folder / "report.json").read_text()))
    except HastenError as error:
        made["failure"] = str(error)[:200]
    return made


def time_all(rows: dict[str, Row], work: Path) -> dict[str, dict[str, float]]:
    """Ratios to eager with their intervals, each in a process of its own, all in turns."""
    x = task_of(Convolutional(), (3, 32, 32)).example[0].numpy()
    path = work / "x.bin"
    path.write_bytes(x.tobytes())
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name, row in rows.items():
            try:
                workers[name] = stack.enter_context(Worker(row.target, work / folder_name(row), work / "log"))
            except HastenError as error:
                print(f"{name} is not timed: {error}", flush=True)
        found = compare(workers, "eager", [ArrayFile(path, x.shape, str(x.dtype))], batch=1)
    return {
        name: {"ratio": f.ratio, "low": f.ratio_low, "high": f.ratio_high}
        for name, f in found.items()
        if name != "eager"
    }


def folder_name(row: Row) -> str:
    return "".join(c if c.isalnum() else "_" for c in row.name)


def brief(report: dict[str, Any]) -> str:
    """The report in a line."""
    flat = {k: v for k, v in report.items() if not isinstance(v, (dict, list))}
    for value in report.values():
        if isinstance(value, dict):
            flat |= {k: v for k, v in value.items() if not isinstance(v, (dict, list))}
    return ", ".join(f"{k} {v}" for k, v in flat.items() if k != "evidence")


def installed_mb() -> dict[str, int]:
    """Size on disk of every environment that is installed."""
    return {
        name: sum(f.lstat().st_size for f in (environments.root() / name).rglob("*") if not f.is_dir()) // 10**6
        for name in environments.names()
        if not environments.missing(name)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("phase", choices=("compile", "time"))
    parser.add_argument("--work", type=Path, required=True, help="Folder for what is compiled.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "targets.json")
    parser.add_argument("--targets", default="", help="Some targets alone; rows of others stay as they are.")
    arguments = parser.parse_args()
    names = arguments.targets.split(",") if arguments.targets else [n for n in all_targets() if n != "null"]
    before = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    done: dict[str, dict[str, Any]] = {row["target"]: row for row in before}
    rows = rows_of(names)

    def write() -> None:
        known = [row.name for row in rows_of([n for n in all_targets() if n != "null"])]
        found = {"network": NETWORK, "machine": f"{cpu_name()}, {usable_cores()} cores", "installed_mb": installed_mb()}
        kept = [done[name] for name in known if name in done]
        arguments.out.write_text(json.dumps({**found, "rows": kept}, indent=2) + "\n")

    if arguments.phase == "compile":
        for row in rows:
            if not (arguments.work / folder_name(row)).exists():
                made = compiled(row, arguments.work / folder_name(row))
                print(made, flush=True)
                # What cannot be used on this machine takes nothing from what was found on another.
                if "needs: " not in made.get("failure", "") or row.name not in done:
                    done[row.name] = made
                # Written after every row: a run that is cut off keeps what it has.
                write()
        return
    timed = {row.name: row for row in rows if row.target.evidence == "timed" and "error" in done.get(row.name, {})}
    for name, ratio in time_all(timed, arguments.work).items():
        done[name] |= ratio
    write()


if __name__ == "__main__":
    main()
