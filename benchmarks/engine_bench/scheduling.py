"""The engine beside the runtime alone, and the makespan over unequal devices."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engine_bench.models import alone, summary
from hasten.engine.engine import Engine
from hasten.engine.runner import open_artifact
from hasten.engine.simulate import SimulatedDevice, simulate


def through_engine(engine: Any, x: np.ndarray, seconds: float) -> float:
    """Rows per second of `map` over batches `x`."""
    end = time.perf_counter() + seconds

    def source() -> Iterator[np.ndarray]:
        yield x
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
    with Engine(runner, largest=batch, profile_s=0.2) as engine:
        through_engine(engine, x, 0.3)
        for repeat in range(repeats):
            found = {}
            for which in ("engine", "runtime")[:: 1 if repeat % 2 == 0 else -1]:
                found[which] = (
                    through_engine(engine, x, seconds)
                    if which == "engine"
                    else alone(runner.lanes[0], x, len(runner.lanes), seconds)[0]
                )
            ratios.append(found["engine"] / found["runtime"])
    return {"ratio": summary(ratios), "batch": batch}


def repeated_device(path: Path, slower: int, rows: int, repeats: int) -> dict[str, Any]:
    """A real session beside itself made `slower` times slower by calling it as often."""
    fast = open_artifact(path, replicas=1, threads=1)
    program = fast.lanes[0]

    def calls(x: np.ndarray) -> tuple[np.ndarray, ...]:
        for _ in range(slower - 1):
            program(x)
        return program(x)

    slow = replace(fast, name=f"the same, {slower} calls for each", lanes=(calls,))
    return makespan([fast, slow], rows, 8, repeats)


def makespan(runners: list[Any], rows: int, largest: int, repeats: int) -> dict[str, Any]:
    """Time for `rows` that are all known / (rows / summed speed), the speed as measured while all run together."""
    x = np.take(runners[0].example[0], np.arange(rows), axis=0, mode="wrap")
    ratios = []
    with Engine(*runners, largest=largest, profile_s=1.0) as engine:
        list(engine.map([x]))
        for _ in range(repeats):
            start = time.perf_counter()
            list(engine.map([x]))
            elapsed = time.perf_counter() - start
            # The speeds that held during this very run: a machine that slows down slows both sides of the ratio.
            speed = sum(d.largest / d.model.predict(d.largest) for d in engine._dispatcher.devices)
            ratios.append(elapsed / (rows / speed))
    return {"rows": rows, "batches": rows / largest, "makespan / lower bound": summary(ratios)}


def simulated_devices(repeats: int) -> dict[str, Any]:
    """10:1 and three devices with 20% jitter: the scheduler that ships, under a virtual clock; nothing is timed."""
    fast, slow = SimulatedDevice("fast", 0.0, 0.001, 8), SimulatedDevice("slow", 0.0, 0.010, 8)
    three = [SimulatedDevice(f"{i}", 0.002, 0.001 * (i + 1), 8, jitter=0.2) for i in range(3)]
    found: dict[str, Any] = {}
    for name, devices, rows in (("10:1", [fast, slow], 128), ("three, 20% jitter", three, 2000)):
        speed = sum(d.largest / (d.base_s + d.row_s * d.largest) for d in devices)
        ratios = [
            simulate(devices, [(0.0, rows)], offline=True, seed=seed).end_s / (rows / speed) for seed in range(repeats)
        ]
        found[f"simulated {name}"] = {"rows": rows, "makespan / lower bound": summary(ratios)}
    return found
