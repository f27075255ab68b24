"""Latency and throughput of programs against a baseline, interleaved in one run, with intervals.

A shared machine drifts: another tenant, a hot core. Programs that take turns drift together, so ratios of neighbouring
turns hold where absolute times do not.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from hasten.measure.arrays import ArrayFile
from hasten.measure.worker import Worker

_TURN_SECONDS = 0.12
_SETTLE_SECONDS = 0.02
_LEAST_CALLS = 3
SECONDS_PER_TURN = _TURN_SECONDS + _SETTLE_SECONDS
_RESAMPLES = 2000


@dataclass(frozen=True)
class Latency:
    """Time per call of one program.

    Attributes:
        batch: Samples per call.
        median_ms, p90_ms, p99_ms: Over all calls of the run.
        ratio: Baseline time / this time, the median over turns; above 1 is faster than the baseline.
        ratio_low, ratio_high: 95% bootstrap interval of `ratio` over turns.
        turns, calls: How much was measured.
    """

    batch: int
    median_ms: float
    p90_ms: float
    p99_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    turns: int
    calls: int

    def scaled(self, factor: float) -> "Latency":
        """The same against a baseline that takes `factor` times as long."""
        return replace(
            self, ratio=self.ratio * factor, ratio_low=self.ratio_low * factor, ratio_high=self.ratio_high * factor
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def compare(
    workers: Mapping[str, Worker], baseline: str, inputs: Sequence[ArrayFile], *, batch: int = 1, turns: int = 9
) -> dict[str, Latency]:
    """Time every worker in turns and return its latency, with the ratio to `baseline`.

    Args:
        workers: Programs by name, `baseline` among them.
        baseline: The name that ratios are taken against.
        inputs: Real inputs, one file per model input.
        batch: Rows per call.
        turns: Rounds in which every program is timed once.
    """
    for worker in workers.values():
        worker.warm_up(inputs, batch)
    times: dict[str, list[np.ndarray]] = {name: [] for name in workers}
    for turn in range(turns):
        # Alternate the order so that no program always follows the same neighbour.
        for name in list(workers)[:: 1 if turn % 2 == 0 else -1]:
            time.sleep(_SETTLE_SECONDS)  # the previous program's threads may still be spinning
            times[name].append(workers[name].time_calls(inputs, batch, _TURN_SECONDS))
    return {name: _summary(times[name], times[baseline], batch) for name in workers}


def _summary(turns: list[np.ndarray], baseline: list[np.ndarray], batch: int) -> Latency:
    own, base = (np.array([np.median(turn) for turn in part]) for part in (turns, baseline))
    ratios = base / own
    low, high = bootstrap_interval(ratios)
    calls = np.concatenate(turns) * 1e3
    return Latency(
        batch=batch,
        median_ms=float(np.median(calls)),
        p90_ms=float(np.percentile(calls, 90)),
        p99_ms=float(np.percentile(calls, 99)),
        ratio=float(np.median(ratios)),
        ratio_low=low,
        ratio_high=high,
        turns=len(turns),
        calls=len(calls),
    )


def bootstrap_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the median of `values` [n] (Efron 1979), with a fixed seed."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (_RESAMPLES, len(values))), axis=1)
    tail = (1 - confidence) / 2 * 100
    low, high = np.percentile(medians, [tail, 100 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class Throughput:
    """Best samples per second over batch sizes, and the smallest batch that reaches 97% of it."""

    batch: int
    samples_per_s: float
    ratio: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def best_throughput(
    workers: Mapping[str, Worker],
    baseline: str,
    inputs: Sequence[ArrayFile],
    *,
    smallest: int = 1,
    largest: int = 64,
    limit_s: float = float("inf"),
) -> dict[str, Throughput]:
    """Samples per second of every worker at its own best batch, doubling from `smallest` up to `largest`, in turns.

    No batch is begun that would probably end beyond `limit_s`; the smallest always is.
    """
    rates: dict[str, dict[int, float]] = {name: {} for name in workers}
    ends = time.perf_counter() + limit_s
    batch = smallest
    while batch <= largest:
        for name, worker in workers.items():
            fits = not rates[name] or time.perf_counter() + _expected_s(rates[name], batch) <= ends
            if fits and _still_gains(rates[name]):
                time.sleep(_SETTLE_SECONDS)
                times = worker.time_calls(inputs, batch, 2 * _TURN_SECONDS, least=_LEAST_CALLS)
                rates[name][batch] = batch / float(np.median(times))
        batch *= 2
    peaks = {name: max(found.values()) for name, found in rates.items()}
    return {
        name: Throughput(
            batch=min(b for b, rate in found.items() if rate >= 0.97 * peaks[name]),
            samples_per_s=peaks[name],
            ratio=peaks[name] / peaks[baseline],
        )
        for name, found in rates.items()
    }


def _expected_s(rates: dict[int, float], batch: int) -> float:
    """What timing a larger batch takes: a call to warm up and the timed ones, as fast as the batch before."""
    return (1 + _LEAST_CALLS) * batch / list(rates.values())[-1]


def _still_gains(rates: dict[int, float]) -> bool:
    """False once two doublings in a row brought less than 3%."""
    values = list(rates.values())
    return len(values) < 3 or max(values[-2:]) > 1.03 * max(values[:-2])
