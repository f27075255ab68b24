"""Service times of devices and the knee: the smallest batch within 97% of the best throughput, measured together."""

import math
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from hasten.engine.runner import Runner, example_rows

_KNEE = 0.97
_LARGEST = 64
# Calls of every lane: fewer of larger batches, or a start would be spent on them.
_CALLS, _FEWEST_CALLS = 20, 8
# What the engine spends on a batch beside the call: waking threads, gathering, handing answers back (measured:
# docs/decisions/2026-11-28-engine-quiet.md).
_HANDLING_S = 60e-6


@dataclass(frozen=True)
class Profile:
    """What was measured of one device while all devices were busy.

    Attributes:
        base_s, row_s: Seconds of a batch: base + row * rows, through the medians of the smallest batch and the knee.
        knee: Smallest batch within 97% of the best rows per second that the engine can reach with it.
        seconds: Median seconds by batch size.
    """

    base_s: float
    row_s: float
    knee: int
    seconds: dict[int, float]


def profile(runners: Sequence[Runner], *, largest: int = _LARGEST, seconds: float = 0.5) -> list[Profile]:
    """Profile every device while all lanes of all devices are running, since neighbours share cores and memory.

    Args:
        runners: The devices, each with an example.
        largest: Largest batch tried.
        seconds: Time for the whole, roughly; a single call of a slow model may exceed it.
    """
    deadline = time.perf_counter() + seconds
    found: list[dict[int, float]] = [{} for _ in runners]
    batch = 1
    while True:
        sizes = [runner.fixed or batch for runner in runners]
        last = all(runner.fixed for runner in runners) or 2 * batch > largest
        spent = max(0.0, deadline - time.perf_counter()) * (1.0 if last else 0.3)
        calls = max(_FEWEST_CALLS, _CALLS // batch)
        for times, size, median in zip(found, sizes, run_together(runners, sizes, spent, calls), strict=True):
            times[size] = median
        # Three sizes at least, or nothing is known about batching; unless the smallest alone takes all the time.
        out_of_time = time.perf_counter() >= deadline and (len(found[0]) >= 3 or max(found[0].values()) > seconds / 4)
        if last or out_of_time or not any(_gains(times) for times in found):
            return [_summary(times) for times in found]
        batch *= 2


def run_together(
    runners: Sequence[Runner], sizes: Sequence[int], seconds: float, calls: float = math.inf
) -> list[float]:
    """Median seconds per batch of every device while all lanes of all of them are busy for `seconds`, or until each
    lane has made `calls`."""
    times: list[list[float]] = [[] for _ in runners]
    lanes = [(index, lane) for index, runner in enumerate(runners) for lane in range(len(runner.lanes))]
    places = {place: number for number, place in enumerate(lanes)}
    counts = [0] * len(places)
    errors: list[BaseException] = []

    def call(index: int, lane: int) -> None:
        runner = runners[index]
        rows = example_rows(runner.example, sizes[index])
        end = time.perf_counter() + seconds
        own: list[float] = []
        try:
            runner.pin(lane)
            while not own or (time.perf_counter() < end and not all(count >= calls for count in counts)):
                start = time.perf_counter()
                runner.lanes[lane](*rows)
                own.append(time.perf_counter() - start)
                counts[places[index, lane]] += 1
        except BaseException as error:
            errors.append(error)
        times[index] += own

    threads = [threading.Thread(target=call, args=(index, lane), daemon=True) for index, lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [statistics.median(own) for own in times]


def _gains(times: dict[int, float]) -> bool:
    rates = [_rate(size, seconds) for size, seconds in sorted(times.items())]
    return len(rates) < 3 or max(rates[-2:]) > rates[-3] * 1.03


def _rate(size: int, seconds: float) -> float:
    return size / (seconds + _HANDLING_S)


def _summary(times: dict[int, float]) -> Profile:
    best = max(_rate(size, seconds) for size, seconds in times.items())
    knee = min(size for size, seconds in times.items() if _rate(size, seconds) >= _KNEE * best)
    smallest = min(times)
    if knee == smallest:
        return Profile(0.0, times[knee] / knee, knee, times)
    row_s = max(0.0, (times[knee] - times[smallest]) / (knee - smallest))
    return Profile(max(0.0, times[smallest] - row_s * smallest), row_s, knee, times)
