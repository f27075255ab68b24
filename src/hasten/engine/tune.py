"""Find the shape of an engine - replicas, threads, largest batch - by measuring every candidate in turns."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hasten.engine.profile import run_together
from hasten.engine.runner import Runner, open_artifact
from hasten.errors import InvalidInput
from hasten.machine import usable_cores

_WORTH = 1.02


@dataclass(frozen=True)
class Shape:
    """A candidate and what was measured of it.

    Attributes:
        replicas, threads: Batches at a time, and threads inside one call.
        batch: Largest batch.
        latency_ms: Median time of a batch while every replica is busy.
        rows_per_s: Of all replicas together.
        pinned: Whether every replica keeps to cores of its own.
    """

    replicas: int
    threads: int
    batch: int
    latency_ms: float
    rows_per_s: float
    pinned: bool = False


def shapes(cores: int) -> list[tuple[int, int]]:
    """Every way to divide the cores evenly: (replicas, threads)."""
    return [(cores // threads, threads) for threads in range(1, cores + 1) if cores % threads == 0]


def tune(
    path: str | os.PathLike[str],
    *,
    bound_ms: float | None = None,
    largest: int = 64,
    turns: int = 3,
    turn_s: float = 0.1,
    opener: Callable[..., Runner] = open_artifact,
) -> list[Shape]:
    """Measure all shapes of an artifact in turns, best first.

    Replicas of one thread are also measured pinned to cores of their own.

    Best is the most rows per second among the batches that take at most half of the bound (a request may arrive just
    after a batch started); among those within 2% the one with the shortest time per batch. When nothing keeps the
    bound, the shortest time per batch comes first.

    Args:
        path: The artifact.
        bound_ms: Latency bound.
        largest: Largest batch to try.
        turns: Rounds in which every candidate is measured once; the median counts.
        turn_s: Seconds of every measurement.
        opener: Opens the artifact as a given shape.

    Raises:
        InvalidInput: An argument is below its smallest value.
    """
    for name, value in (("largest", largest), ("turns", turns)):
        if value < 1:
            raise InvalidInput(f"`{name}` must be at least 1, but got {value}.")
    runners = {
        (replicas, threads, pinned): opener(path, replicas=replicas, threads=threads, pinned=pinned)
        for replicas, threads in shapes(usable_cores())
        # More than one thread inside a call cannot be pinned from outside, and one replica has nobody to keep away.
        for pinned in ((False, True) if replicas > 1 and threads == 1 else (False,))
    }
    try:
        found = _measure(runners, largest, turns, turn_s)
    finally:
        for runner in runners.values():
            runner.close()
    return ranked(found, bound_ms)


def _measure(runners: dict[tuple[int, int, bool], Runner], largest: int, turns: int, turn_s: float) -> list[Shape]:
    times: dict[tuple[int, int, bool, int], list[float]] = {}
    for turn in range(turns):
        for shape in list(runners)[:: 1 if turn % 2 == 0 else -1]:
            runner, batch = runners[shape], 1
            while batch <= largest:
                size = runner.fixed or batch
                times.setdefault((*shape, size), []).extend(run_together([runner], [size], turn_s))
                if runner.fixed is not None:
                    break
                batch *= 2
    found = []
    for (replicas, threads, pinned, batch), seconds in times.items():
        middle = sorted(seconds)[len(seconds) // 2]
        found.append(Shape(replicas, threads, batch, 1e3 * middle, replicas * batch / middle, pinned))
    return found


def ranked(found: Sequence[Shape], bound_ms: float | None) -> list[Shape]:
    """The shapes from best to worst; see `tune`."""
    fits = [x for x in found if bound_ms is None or x.latency_ms <= bound_ms / 2]
    late = sorted((x for x in found if x not in fits), key=lambda x: x.latency_ms)
    order = []
    rest = sorted(fits, key=lambda x: -x.rows_per_s)
    while rest:
        close = [x for x in rest if x.rows_per_s * _WORTH >= rest[0].rows_per_s]
        best = min(close, key=lambda x: x.latency_ms)
        order.append(best)
        rest.remove(best)
    return order + late
