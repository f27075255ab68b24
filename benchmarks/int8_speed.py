"""hasten's int8 against ONNX Runtime's quantizer, NNCF, torchao and neural-compressor: same network, same calibration,
one interleaved run.

    python benchmarks/int8_speed.py make [NETWORK ...]    # every tool's files, kept; minutes, also on a busy machine
    python benchmarks/int8_speed.py time [NETWORK ...]    # a minute a network, on a quiet machine

Every tool's file runs in every runtime that reads it, with the same settings of the runtime for all. NNCF and
neural-compressor run in the environments of `hasten-bench install`, torchao in this one. What is absent or fails is
left out, and the results say so. Writes `benchmarks/results/int8_speed.json`.
"""

import contextlib
import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cifar import provenance
from hasten.machine import fingerprint
from hasten.measure.arrays import ArrayWriter
from hasten.measure.latency import compare
from hasten.measure.worker import ProgramFailed, Worker
from hasten.recipe import make_target
from int8_made import JUDGED, THREADS, Made, make, read
from int8_networks import NETWORKS

RESULTS = Path(__file__).parent / "results" / "int8_speed.json"
TURNS = int(os.environ.get("HASTEN_BENCH_TURNS", "25"))
TRIAL_TURNS = 5
# How near the outputs must stay to those in float for a row to count.
LEAST_COSINE = 0.95


def time_all(names: list[str]) -> None:
    """Time what was made and write the results; a run of some networks keeps what earlier runs found on the others."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"networks": {}}
    results |= {"machine": fingerprint(), "threads": THREADS, "turns": TURNS}
    for name in names:
        origin = {key: value for key, value in provenance().items() if key != "device"}
        results["networks"][name] = measure(name) | {"load": os.getloadavg()[0]} | origin
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        show(name, results["networks"][name])


def measure(name: str) -> dict[str, Any]:
    """All programs of a network in a short trial; then, at length, the quickest of every tool, overall and by runtime.

    `contests` holds, by runtime and for "any", the quickest peer and everybody's latency with the ratio to that peer.
    """
    made, failed = read(name)
    with np.load(made[0].folder.parent / "judged.npz") as file:
        columns, reference = [file[key] for key in sorted(file.files) if key.startswith("input")], file["reference"]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        scratch = Path(folder)
        files = [ArrayWriter(scratch / f"judged_{i}.bin", column).close() for i, column in enumerate(columns)]
        workers = start(made, scratch, stack)
        cosines = {}
        for index, (key, worker) in enumerate(workers.items()):
            found = worker.infer(files, np.arange(JUDGED), scratch / f"outputs_{index}", 1)
            cosines[key] = cosine(np.array(found[0].open()).reshape(JUDGED, -1), reference)
        trial = {k: v.median_ms for k, v in compare(workers, next(iter(workers)), files, turns=TRIAL_TURNS).items()}
        known = {entry.name: entry for entry in made if entry.name in workers}
        fitting = [entry for key, entry in known.items() if cosines[key] >= LEAST_COSINE]
        contests = {}
        for runtime in ("any", *sorted({entry.target for entry in fitting})):
            names = quickest_of_each([e for e in fitting if runtime in ("any", e.target)], trial)
            tools = {known[key].tool for key in names} - {"float"}
            if "hasten" in tools and len(tools) > 1:
                final = compare({key: workers[key] for key in names}, names[0], files, turns=TURNS)
                contests[runtime] = {"best_peer": names[0], "rows": {k: v.to_json() for k, v in final.items()}}
    rows = []
    for key, entry in known.items():
        row = {"name": key, "tool": entry.tool, "variant": entry.variant, "runtime": entry.target}
        row |= {"options": entry.options, "cosine_to_float": cosines[key], "counts": cosines[key] >= LEAST_COSINE}
        rows.append(row | {"trial_ms": trial[key]})
    return {"contests": contests, "rows": sorted(rows, key=lambda row: row["trial_ms"]), "left_out": failed}


def quickest_of_each(entries: list[Made], median_ms: dict[str, float]) -> list[str]:
    """Names to time at length, of every tool its quickest: the peers first, the quickest of them in front."""
    quickest = {e.tool: e for e in sorted(entries, key=lambda e: -median_ms[e.name])}
    chosen = sorted(quickest.values(), key=lambda e: (e.tool in ("hasten", "float"), median_ms[e.name]))
    return [entry.name for entry in chosen]


def start(made: list[Made], scratch: Path, stack: contextlib.ExitStack) -> dict[str, Worker]:
    """The programs that load, each in a process of its own."""
    workers = {}
    for entry in made:
        try:
            target = make_target(entry.target, entry.options)
            workers[entry.name] = stack.enter_context(Worker(target, entry.folder, scratch / "log.txt"))
        except ProgramFailed as failure:
            print(f"{entry.name} does not load: {failure}")
    return workers


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Mean cosine of rows."""
    return float(np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))


def show(name: str, result: dict[str, Any]) -> None:
    """Print one network's rows."""
    for row in result["rows"]:
        print(f"  {row['name']:62s} {row['trial_ms']:8.3f} ms in the trial  cosine {row['cosine_to_float']:.4f}")
    for runtime, contest in result["contests"].items():
        print(f"{name} in {runtime} runtime: speed against the quickest peer")
        for key, row in contest["rows"].items():
            interval = f"[{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]"
            print(f"  {key:62s} {row['median_ms']:8.3f} ms  x{row['ratio']:.3f} {interval}", flush=True)


def main() -> None:
    """Make or time, for the networks named or all."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(THREADS)
    command, names = sys.argv[1], sys.argv[2:] or list(NETWORKS)
    if command == "make":
        for name in names:
            make(name)
    elif command == "time":
        time_all(names)
    else:
        raise SystemExit(f"int8_speed.py knows make and time, but got {command!r}.")


if __name__ == "__main__":
    main()
