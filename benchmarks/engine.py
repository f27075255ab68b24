"""The engine and the server against the runtime alone, on the same session in one run.

    python benchmarks/engine.py [--repeats 5] [--seconds 1.0] [--out engine.json]

Every ratio is the median over interleaved repeats, with the smallest and largest repeat beside it. Load for latency is
open loop: latency counts from the scheduled time of a request. CPU time is that of the server's process alone. The
networks are random perceptrons; only their time matters. The client runs on the same cores as the server.
"""

import argparse
import asyncio
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

from hasten import artifact
from hasten.engine.dispatch import Dispatcher
from hasten.engine.engine import Engine
from hasten.engine.runner import open_artifact
from hasten.machine import fingerprint, usable_cores
from hasten.recipe import Recipe, make_target


def perceptron(folder: Path, name: str, width: int, layers: int) -> Path:
    """An artifact of `layers` square layers, [rows, width] to [rows, width]."""
    generator = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for i in range(layers):
        value = (generator.normal(size=(width, width)) / width**0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(value, f"w{i}"))
        nodes += [
            helper.make_node("MatMul", [last, f"w{i}"], [f"h{i}"]),
            helper.make_node("Tanh", [f"h{i}"], [f"t{i}"]),
        ]
        last = f"t{i}"
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)],
        weights,
    )
    compiled = folder / f"{name}-compiled"
    compiled.mkdir()
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), compiled / "model.onnx"
    )
    target, example = make_target("onnxruntime"), generator.normal(size=(4, width)).astype(np.float32)
    spec = {"name": "x", "dtype": "float32", "shape": [None, width]}
    return artifact.write(
        folder / f"{name}.hasten", compiled, Recipe((), target), [spec], [example], target.load(compiled)(example)
    ).path


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def alone(program: Callable[..., Any], x: np.ndarray, lanes: int, seconds: float) -> tuple[float, float]:
    """Rows per second of `lanes` threads that call the program in a loop, and CPU seconds per call."""
    counts = [0] * lanes
    end = time.perf_counter() + seconds

    def run(lane: int) -> None:
        while time.perf_counter() < end:
            program(x)
            counts[lane] += 1

    threads = [threading.Thread(target=run, args=(lane,)) for lane in range(lanes)]
    start, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) * len(x) / (time.perf_counter() - start), (time.process_time() - cpu) / sum(counts)


def through_engine(engine: Engine, x: np.ndarray, seconds: float) -> float:
    end = time.perf_counter() + seconds

    def source() -> Iterator[np.ndarray]:
        while time.perf_counter() < end:
            yield x

    start = time.perf_counter()
    rows = sum(len(y[0]) for y in engine.map(source()))
    return rows / (time.perf_counter() - start)


def engine_against_runtime(path: Path, batch: int, repeats: int, seconds: float) -> dict[str, Any]:
    """Rows per second of the engine / of the same session called by as many threads, both in batches of `batch`."""
    runner = open_artifact(path)
    x = np.take(runner.example[0], np.arange(batch), axis=0, mode="wrap")
    ratios = []
    with Engine(runner, largest=batch, profile_s=0.1) as engine:
        through_engine(engine, x, 0.2)
        for repeat in range(repeats):
            order = [0, 1] if repeat % 2 == 0 else [1, 0]
            found = [0.0, 0.0]
            for which in order:
                found[which] = (
                    through_engine(engine, x, seconds)
                    if which == 0
                    else alone(runner.lanes[0], x, len(runner.lanes), seconds)[0]
                )
            ratios.append(found[0] / found[1])
        model_ms = engine.profiles[0].seconds
    return {"ratio": summary(ratios), "batch": batch, "model_ms": {k: 1e3 * v for k, v in model_ms.items()}}


@dataclass
class Served:
    process: psutil.Process
    port: int
    ready_s: float


@contextlib.contextmanager
def server(path: Path, *options: str) -> Iterator[Served]:
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


@dataclass
class Load:
    """What a load generator saw: (status, latency in s) of every request."""

    seen: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0

    def latencies_ms(self, code: int) -> np.ndarray:
        return np.array([1e3 * s for status, s in self.seen if status == code])


def message(x: np.ndarray) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return (
        b"POST /v2/models/net/infer HTTP/1.1\r\nHost: localhost\r\n"
        + f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {len(head) + x.nbytes}\r\n\r\n".encode()
        + head
        + x.tobytes()
    )


class Connection:
    def __init__(self, port: int, data: bytes) -> None:
        self._port, self._data = port, data

    async def open(self) -> "Connection":
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def ask(self) -> int:
        self._writer.write(self._data)
        head = await self._reader.readuntil(b"\r\n\r\n")
        match = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        assert match is not None
        await self._reader.readexactly(int(match[1]))
        return int(head[9:12])

    def close(self) -> None:
        self._writer.close()


async def closed_loop(port: int, data: bytes, clients: int, seconds: float) -> Load:
    load = Load()
    end = time.perf_counter() + seconds

    async def client() -> None:
        connection = await Connection(port, data).open()
        while (start := time.perf_counter()) < end:
            load.seen.append((await connection.ask(), time.perf_counter() - start))
        connection.close()

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    load.seconds = time.perf_counter() - start
    return load


async def open_loop(port: int, data: bytes, rate: float, seconds: float) -> Load:
    load, free = Load(), [await Connection(port, data).open() for _ in range(64)]
    tasks: set[asyncio.Task[None]] = set()

    async def one(scheduled: float) -> None:
        connection = free.pop() if free else await Connection(port, data).open()
        code = await connection.ask()
        load.seen.append((code, time.perf_counter() - scheduled))
        free.append(connection)

    start = time.perf_counter()
    gaps = np.random.default_rng(0).exponential(1 / rate, int(rate * seconds))
    for offset in np.cumsum(gaps):
        wait = start + float(offset) - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.add(asyncio.create_task(one(start + float(offset))))
    await asyncio.gather(*tasks)
    load.seconds = time.perf_counter() - start
    for connection in free:
        connection.close()
    return load


def served(path: Path, repeats: int, seconds: float) -> dict[str, Any]:
    """Closed-loop throughput, CPU and latency of the server beside the runtime alone."""
    runner = open_artifact(path)
    x = runner.example[0][:1]
    data = message(x)
    found: dict[str, list[float]] = {}
    with server(path) as running:
        asyncio.run(closed_loop(running.port, data, 4, 0.3))
        for _ in range(repeats):
            rate, cpu_s = alone(runner.lanes[0], x, len(runner.lanes), seconds)
            before = sum(running.process.cpu_times()[:2])
            many = asyncio.run(closed_loop(running.port, data, 16, seconds))
            used = sum(running.process.cpu_times()[:2]) - before
            one = asyncio.run(closed_loop(running.port, data, 1, seconds))
            times = many.latencies_ms(200)
            add = {
                "throughput / runtime alone": len(times) / many.seconds / rate,
                "server CPU per request beyond the model, us": 1e6 * (used / len(times) - cpu_s),
                "p99 / p50, 16 clients": float(np.percentile(times, 99) / np.percentile(times, 50)),
                "p50 of one client / model time": float(np.median(one.latencies_ms(200)))
                / (1e3 * len(runner.lanes) / rate),
            }
            for key, value in add.items():
                found.setdefault(key, []).append(value)
        time.sleep(1)
        before, start = sum(running.process.cpu_times()[:2]), time.perf_counter()
        time.sleep(3)
        idle = (sum(running.process.cpu_times()[:2]) - before) / (time.perf_counter() - start)
        memory = running.process.memory_info().rss
        ready = running.ready_s
    return {
        **{k: summary(v) for k, v in found.items()},
        "ready_s": ready,
        "memory_bytes": memory,
        "idle_cpu_share": idle,
    }


def overload(path: Path, repeats: int, seconds: float, bound_ms: float = 100.0) -> dict[str, Any]:
    """Three times the capacity offered, open loop: answers within the bound, and how fast the others are refused."""
    runner = open_artifact(path)
    x = runner.example[0][:1]
    data = message(x)
    found: dict[str, list[float]] = {}
    with server(path, "--bound-ms", str(bound_ms)) as running:
        for _ in range(repeats):
            capacity_load = asyncio.run(closed_loop(running.port, data, 8, seconds))
            capacity = len(capacity_load.latencies_ms(200)) / capacity_load.seconds
            load = asyncio.run(open_loop(running.port, data, 3 * capacity, 2 * seconds))
            accepted, refused = load.latencies_ms(200), load.latencies_ms(503)
            add = {
                "capacity, requests/s": capacity,
                "answers within the bound / capacity": float((accepted <= bound_ms).sum() / load.seconds / capacity),
                "rejection p99, ms": float(np.percentile(refused, 99)) if len(refused) else float("nan"),
                "accepted p99 / bound": float(np.percentile(accepted, 99)) / bound_ms
                if len(accepted)
                else float("nan"),
            }
            for key, value in add.items():
                found.setdefault(key, []).append(value)
    return {k: summary(v) for k, v in found.items()}


def unequal(path: Path, slower: int, rows: int, repeats: int) -> dict[str, Any]:
    """Makespan / (rows / summed speed) of a real session beside itself made `slower` times slower by repetition."""
    fast = open_artifact(path, replicas=1, threads=1)
    program = fast.lanes[0]

    def repeated(x: np.ndarray) -> tuple[np.ndarray, ...]:
        for _ in range(slower - 1):
            program(x)
        return program(x)

    from dataclasses import replace

    slow = replace(fast, name=f"the same, {slower} calls for each", lanes=(repeated,))
    x = np.take(fast.example[0], np.arange(rows), axis=0, mode="wrap")
    ratios = []
    with Engine(fast, slow, largest=8, profile_s=1.0) as engine:
        list(engine.map([x]))
        for _ in range(repeats):
            dispatcher: Dispatcher = engine._dispatcher
            speed = sum(d.largest / d.model.predict(d.largest) for d in dispatcher.devices)
            start = time.perf_counter()
            list(engine.map([x]))
            ratios.append((time.perf_counter() - start) / (rows / speed))
    return {"rows": rows, "makespan / lower bound": summary(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    repeats, seconds = arguments.repeats, arguments.seconds
    with tempfile.TemporaryDirectory() as scratch:
        small = perceptron(Path(scratch), "small", 512, 16)
        large = perceptron(Path(scratch), "large", 1024, 24)
        result = {
            "machine": fingerprint(),
            "load_average": psutil.getloadavg(),
            "cores": usable_cores(),
            "engine / runtime, large network": engine_against_runtime(large, 8, repeats, seconds),
            "engine / runtime, small network": engine_against_runtime(small, 8, repeats, seconds),
            "served, large network": served(large, repeats, seconds),
            "served, small network": served(small, repeats, seconds),
            "overload at 3 times the capacity": overload(large, repeats, seconds),
            "unequal devices 4:1": [unequal(large, 4, rows, repeats) for rows in (400, 48)],
        }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
