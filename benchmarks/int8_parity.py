"""hasten's int8 against ONNX Runtime's quantizer, NNCF, torchao and neural-compressor: same network, same calibration,
one interleaved run.

    python benchmarks/int8_parity.py [NETWORK ...]

NNCF runs in the interpreter named by HASTEN_NNCF_PYTHON (an environment with `nncf` and `openvino`), neural-compressor
in that of HASTEN_INC_PYTHON (with `neural-compressor-pt` and this torch), torchao in this one; both compile with
Inductor. What is absent or fails is left out, and the output says so. Writes `benchmarks/results/int8_parity.json`.
"""

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule

import hasten
import int8_peers
from hasten.graph.onnx import write_onnx
from hasten.machine import fingerprint
from hasten.measure.arrays import ArrayWriter
from hasten.measure.latency import compare
from hasten.measure.worker import ProgramFailed, Worker
from hasten.recipe import Target, make_target
from hasten.targets.openvino import OpenVino
from int8_networks import NETWORKS, Network

RESULTS = Path(__file__).parent / "results" / "int8_parity.json"
THREADS = int(os.environ.get("HASTEN_BENCH_THREADS", "2"))
TURNS = int(os.environ.get("HASTEN_BENCH_TURNS", "25"))
CALIBRATION, JUDGED = 32, 32


@dataclass(frozen=True)
class Entry:
    """One file in one runtime: who made it, how, and where it lies."""

    tool: str
    variant: str
    target: Target
    folder: Path

    @property
    def name(self) -> str:
        options = getattr(self.target, "precision", "fp32")
        return f"{self.tool} {self.variant} / {type(self.target).__name__} {options}"


def main(names: list[str]) -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(THREADS)
    # A run of some networks keeps what earlier runs found on the others.
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"networks": {}}
    results |= {"machine": fingerprint(), "threads": THREADS, "turns": TURNS}
    for name in names or list(NETWORKS):
        with tempfile.TemporaryDirectory() as scratch:
            results["networks"][name] = measure(NETWORKS[name](), Path(scratch))
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        show(name, results["networks"][name])


def measure(network: Network, scratch: Path) -> dict[str, Any]:
    graph = hasten.capture(network.model, network.example)
    task = hasten.Task(
        network.model, network.example, holdout=[network.example[0]], calibration=network.calibration[:CALIBRATION]
    )
    source, inputs = scratch / "float.onnx", scratch / "calibration.npz"
    write_onnx(graph, network.example, source)
    columns = [torch.cat(column).numpy() for column in zip(*network.calibration, strict=True)]
    np.savez(inputs, **{f"input_{i}": column[:CALIBRATION] for i, column in enumerate(columns)})
    files = [ArrayWriter(scratch / f"judged_{i}.bin", column[-JUDGED:]).close() for i, column in enumerate(columns)]

    entries = [*in_every_runtime("float", "", source, scratch), *peers(network, source, inputs, scratch)]
    entries += torch_peers(graph, network, inputs, scratch)
    ours, torch_graphs = own(graph, task, scratch, network.transformer)
    entries += ours
    with torch.no_grad():
        reference = run_torch(graph, columns)
        own_outputs = {placement: run_torch(g, columns) for placement, g in torch_graphs.items()}
    with contextlib.ExitStack() as stack:
        workers = start(entries, scratch, stack)
        outputs = {}
        for index, (name, worker) in enumerate(workers.items()):
            found = worker.infer(files, np.arange(JUDGED), scratch / f"outputs_{index}", 1)
            outputs[name] = np.array(found[0].open()).reshape(JUDGED, -1)
        best = quickest(entries, compare(workers, next(iter(workers)), files, turns=5), "peers")
        latencies = compare(workers, best, files, turns=TURNS)
    rows = []
    for entry in entries:
        if entry.name not in latencies:
            continue
        row = {"name": entry.name, "tool": entry.tool, "runtime": type(entry.target).__name__}
        row |= latencies[entry.name].to_json() | {"cosine_to_float": cosine(outputs[entry.name], reference)}
        if entry.tool == "hasten":
            row["steps_from_torch"] = steps_apart(outputs[entry.name], own_outputs[entry.variant])
        rows.append(row)
    return {"best_peer": best, "rows": sorted(rows, key=lambda row: row["median_ms"])}


def in_every_runtime(tool: str, variant: str, source: Path, scratch: Path) -> list[Entry]:
    """One ONNX file in every runtime."""
    import openvino as ov

    folder = Path(tempfile.mkdtemp(dir=scratch))
    shutil.copy(source, folder / "model.onnx")
    ov.save_model(ov.convert_model(source), folder / "model.xml", compress_to_fp16=False)
    return [Entry(tool, variant, target, folder) for target in runtimes()]


def runtimes() -> list[Target]:
    """The best settings of each runtime, for every tool's file alike."""
    found: list[Target] = [make_target("onnxruntime", {"threads": THREADS})]
    for precision in ("fp32", "bf16"):
        target = make_target("openvino", {"threads": THREADS, "precision": precision})
        if not target.missing():
            found.append(target)
    return found


def own(
    graph: GraphModule, task: hasten.Task, scratch: Path, transformer: bool
) -> tuple[list[Entry], dict[str, GraphModule]]:
    """Static int8 as each target wants it; of transformers also int8 weights, whose inputs are rounded as they come."""
    entries: list[Entry] = []
    graphs: dict[str, GraphModule] = {}
    folders: dict[tuple[type[Target], str], Path] = {}
    for target in runtimes():
        for variant in (type(target).placements[0], *(("weights int8",) if transformer else ())):
            if variant not in graphs:
                weights_alone = variant == "weights int8"
                chosen = hasten.QuantizeWeights() if weights_alone else hasten.Quantize(placement=variant)
                graphs[variant] = chosen.apply(graph, task)
            # Both precisions of a target read the same file.
            key = (type(target), variant)
            if key not in folders:
                folders[key] = Path(tempfile.mkdtemp(dir=scratch))
                target.compile(graphs[variant], task, folders[key])
            entries.append(Entry("hasten", variant, target, folders[key]))
    return entries, graphs


def peers(network: Network, source: Path, inputs: Path, scratch: Path) -> list[Entry]:
    found = []
    for variant, write in int8_peers.onnxruntime_variants(source, inputs, scratch, network.transformer).items():
        made = scratch / f"onnxruntime_{variant.replace(' ', '_')}.onnx"
        write(made)
        found += in_every_runtime("onnxruntime quantizer", variant, made, scratch)[: 1 if variant != "U8S8" else None]
    kind = "-transformer" if network.transformer else ""
    for preset in ("MIXED", "PERFORMANCE"):
        if folder := _made(
            os.environ.get("HASTEN_NNCF_PYTHON"), f"nncf-{preset.lower()}{kind}", source, inputs, scratch
        ):
            found += [Entry("nncf", preset, target, folder) for target in runtimes() if isinstance(target, OpenVino)]
    return found


def torch_peers(graph: GraphModule, network: Network, inputs: Path, scratch: Path) -> list[Entry]:
    """What quantizes the captured graph itself, at batch 1 as it is timed, and compiles it with Inductor."""
    program, found = scratch / "float.pt2", []
    torch.export.save(torch.export.export(graph, network.example, strict=False), program)
    target = make_target("inductor", {"threads": THREADS})
    for tool, python in (("torchao", sys.executable), ("neural-compressor", os.environ.get("HASTEN_INC_PYTHON"))):
        if folder := _made(python, tool, program, inputs, scratch):
            found.append(Entry(tool, "static", target, folder))
    return found


def _made(python: str | None, tool: str, source: Path, inputs: Path, scratch: Path) -> Path | None:
    """The folder that `int8_peers.py` wrote; None where the tool is absent or fails."""
    if python is None:
        print(f"{tool} is left out: no interpreter is named for it.")
        return None
    folder = Path(tempfile.mkdtemp(dir=scratch))
    out = folder / ("model.xml" if tool.startswith("nncf") else "model.pt2")
    command = [python, int8_peers.__file__, tool, str(source), str(inputs), str(out)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        print(f"{tool} is left out, it failed: {(done.stderr.strip().splitlines() or ['?'])[-1]:.300}")
        return None
    return folder


def start(entries: list[Entry], scratch: Path, stack: contextlib.ExitStack) -> dict[str, Worker]:
    workers = {}
    for made in entries:
        try:
            workers[made.name] = stack.enter_context(Worker(made.target, made.folder, scratch / "log.txt"))
        except ProgramFailed as failure:
            print(f"{made.name} does not load: {failure}")
    return workers


def quickest(entries: list[Entry], latencies: dict[str, Any], who: str) -> str:
    chosen = [e.name for e in entries if e.name in latencies and (e.tool in ("hasten", "float")) == (who != "peers")]
    return min(chosen, key=lambda name: latencies[name].median_ms)


def run_torch(graph: GraphModule, columns: list[np.ndarray]) -> np.ndarray:
    results = []
    for i in range(len(columns[0]) - JUDGED, len(columns[0])):
        out = graph(*(torch.from_numpy(column[i : i + 1]) for column in columns))
        results.append((out[0] if isinstance(out, tuple) else out).numpy().reshape(-1))
    return np.stack(results)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))


def steps_apart(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Distance in 8-bit steps of the output's range."""
    apart = np.abs(a - b) / ((b.max() - b.min()) / 255)
    return {"max": float(apart.max()), "mean": float(apart.mean())}


def show(name: str, result: dict[str, Any]) -> None:
    print(f"\n{name}: speed against the quickest peer ({result['best_peer']})")
    for row in result["rows"]:
        steps = row.get("steps_from_torch")
        print(
            f"  {row['name']:58s} {row['median_ms']:8.2f} ms  x{row['ratio']:.2f} "
            f"[{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]  cosine {row['cosine_to_float']:.4f}"
            + (f"  steps from torch: max {steps['max']:.2f}, mean {steps['mean']:.2f}" if steps else "")
        )
    for runtime in sorted({row["runtime"] for row in result["rows"]} - {"Eager"}):
        here = [row for row in result["rows"] if row["runtime"] == runtime]
        mine = min(row["median_ms"] for row in here if row["tool"] == "hasten")
        theirs = min((row["median_ms"] for row in here if row["tool"] not in ("hasten", "float")), default=None)
        if theirs is not None:
            verdict = "hasten wins" if mine <= theirs else "the peer wins"
            print(f"  {runtime}: peer / hasten = {theirs / mine:.2f} ({verdict})")
    best = max(row["ratio"] for row in result["rows"] if row["tool"] == "hasten")
    print(f"  each in its best runtime: peer / hasten = {best:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
