"""The server beside the runtime alone, on the same kind of session; rivals are asked the same way."""

import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from engine_bench.load import Load, closed_loop, open_loop, run, v2_binary
from engine_bench.models import alone, summary
from hasten.engine.runner import open_artifact
from hasten.machine import usable_cores

SETTLE_S = 0.05


@dataclass
class Served:
    """A running server: its process tree's root, port, and seconds until it was ready."""

    process: psutil.Process
    port: int
    ready_s: float

    def cpu_s(self) -> float:
        """CPU seconds of the tree so far."""
        if sys.platform != "linux":
            return sum(sum(p.cpu_times()[:2]) for p in self._tree())
        # The kernel's clock of another process (clock_getcpuclockid(3)), in nanoseconds instead of ticks of 10 ms.
        return sum(time.clock_gettime((~p.pid << 3) | 2) for p in self._tree())

    def memory_bytes(self) -> int:
        return sum(p.memory_full_info().pss for p in self._tree())

    def _tree(self) -> list[psutil.Process]:
        found = []
        for process in [self.process, *self.process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.cpu_times()
                found.append(process)
        return found


@contextlib.contextmanager
def hasten_server(path: Path, *options: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "hasten.cli", "serve", f"net={path}", "--port", "0", "--no-grpc", *options]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.search(r":(\d+)\s*$", line)
            if match is None:
                raise RuntimeError(f"the server did not start: {line!r}")
            yield Served(psutil.Process(process.pid), int(match[1]), time.perf_counter() - start)
        finally:
            process.terminate()


def mean_batch(port: int) -> float:
    """Rows per batch so far, as hasten's status says."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/status.json", timeout=10) as response:
        devices = json.load(response)["models"][0]["devices"]
    return sum(d["rows"] for d in devices) / max(1, sum(d["batches"] for d in devices))


def against_runtime(
    running: Served,
    data: bytes,
    path: Path,
    repeats: int,
    seconds: float,
    batch_of: Callable[[int], float] | None = None,
) -> dict[str, Any]:
    """Closed-loop throughput, CPU time and latency beside the runtime alone, in turns.

    What the runtime alone reaches is the better of batch 1 and the batch that the server ran on average; the CPU time
    of the model is that at the server's batch, or what batching saves would count as the server's merit.
    """
    runner = open_artifact(path)
    lanes = len(runner.lanes)
    found: dict[str, list[float]] = {}
    closed_loop(running.port, data, 16, 0.5)
    batch = max(1, round(batch_of(running.port))) if batch_of else 1
    for _ in range(repeats):
        single = np.take(runner.example[0], [0], axis=0)
        many_rows = np.take(runner.example[0], np.arange(batch), axis=0, mode="wrap")
        rate, cpu_s = alone(runner.lanes[0], single, lanes, seconds)
        batched_rate, batched_cpu_s = alone(runner.lanes[0], many_rows, lanes, seconds) if batch > 1 else (rate, cpu_s)
        before = running.cpu_s()
        many = closed_loop(running.port, data, 16, seconds)
        used = running.cpu_s() - before
        time.sleep(SETTLE_S)
        one = closed_loop(running.port, data, 1, seconds)
        times = many.latencies_ms()
        add = {
            "throughput / runtime alone": many.rate / max(rate, batched_rate),
            "the same, of the CPU time that the load generator left": many.rate
            / (max(rate, batched_rate) * (1 - many.cpu_s / (many.seconds * usable_cores()))),
            "load generator's CPU per request, us": 1e6 * many.cpu_s / len(many.seen),
            "server CPU per request beyond the model, us": 1e6 * (used / len(many.seen) - batched_cpu_s),
            "the same / the model's CPU time": used / len(many.seen) / batched_cpu_s - 1,
            "CPU per request, us": 1e6 * used / len(many.seen),
            "p99 / p50, 16 clients": float(np.percentile(times, 99) / np.percentile(times, 50)),
            "p50 of one client / model time": float(np.median(one.latencies_ms())) / (1e3 * lanes / rate),
            "requests/s, 16 clients": many.rate,
            "model, ms": 1e3 * lanes / rate,
        }
        for key, value in add.items():
            found.setdefault(key, []).append(value)
    return {"mean batch": batch, **{key: summary(values) for key, values in found.items()}}


def served(path: Path, repeats: int, seconds: float) -> dict[str, Any]:
    """Everything about hasten's server on one network."""
    data = v2_binary(open_artifact(path).example[0][:1])
    with hasten_server(path) as running:
        found = against_runtime(running, data, path, repeats, seconds, mean_batch)
        time.sleep(1)
        before, start = running.cpu_s(), time.perf_counter()
        time.sleep(3)
        idle = (running.cpu_s() - before) / (time.perf_counter() - start)
        return found | {
            "ready, s": running.ready_s,
            "memory, bytes": running.memory_bytes(),
            "memory of the runtime and the model alone, bytes": _loaded_bytes(path),
            "idle CPU share": idle,
        }


def _loaded_bytes(path: Path) -> int:
    code = (
        "import sys, psutil\nfrom hasten.artifact import load\n"
        "p = load(sys.argv[1], options={'threads': 1})\n"
        "import numpy as np; p(np.load(sys.argv[1] + '/check_input_0.npy'))\n"
        "print(psutil.Process().memory_full_info().pss)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def overload(path: Path, repeats: int, seconds: float, bound_ms: float = 100.0) -> dict[str, Any]:
    """Three times the capacity offered, open loop: answers within the bound, and how fast the others are refused."""
    data = v2_binary(open_artifact(path).example[0][:1])
    with hasten_server(path, "--bound-ms", str(bound_ms)) as running:
        return overloaded(running.port, data, repeats, seconds, bound_ms)


def overloaded(port: int, data: bytes, repeats: int, seconds: float, bound_ms: float) -> dict[str, Any]:
    found: dict[str, list[float]] = {}
    for repeat in range(repeats):
        # As many clients as keep every replica busy without breaking the bound.
        capacity = closed_loop(port, data, 8, seconds).rate
        load: Load = run(open_loop(port, data, 3 * capacity, 2 * seconds, repeat))
        accepted, refused = load.latencies_ms(200), load.latencies_ms(503)
        add = {
            "capacity, requests/s": capacity,
            "answers within the bound / capacity": float((accepted <= bound_ms).sum() / load.seconds / capacity),
            "accepted p99 / bound": float(np.percentile(accepted, 99)) / bound_ms if len(accepted) else 99.0,
            "rejection p50, ms": float(np.percentile(refused, 50)) if len(refused) else 0.0,
            "rejection p99, ms": float(np.percentile(refused, 99)) if len(refused) else 0.0,
        }
        for key, value in add.items():
            found.setdefault(key, []).append(value)
    return {key: summary(values) for key, values in found.items()}
