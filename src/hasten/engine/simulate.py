"""Simulated devices under a virtual clock, driving the real `Dispatcher`. Nothing computed here was measured.

For tests of the scheduling rules and for asking what a mix of devices would do before buying it.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hasten.engine.dispatch import Dispatcher
from hasten.engine.service import ServiceModel
from hasten.engine.work import Device, DeviceFailed, Limits, Mode, Work

_DEFAULT = Limits()


@dataclass(frozen=True)
class SimulatedDevice:
    """A device with known service times.

    Attributes:
        base_s, row_s: Seconds of a batch: base + row * rows.
        largest: Largest batch.
        lanes: Batches at a time.
        jitter: Relative standard deviation (log-normal) of the service time.
        factor: Multiplies the service time of a batch started at a time; infinity stalls it forever.
        dies_at_s: Raises from then on.
        known: Whether the dispatcher starts with the right service model, as after profiling, or with none.
    """

    name: str
    base_s: float
    row_s: float
    largest: int
    lanes: int = 1
    jitter: float = 0.0
    factor: Callable[[float], float] = lambda now: 1.0
    dies_at_s: float = math.inf
    known: bool = True


@dataclass
class Outcome:
    """What a simulation did: for every work its answers (1 is right), error and times; and the end of the last.

    `refused` lists the works that were not admitted.
    """

    answers: list[int]
    errors: list[BaseException | None]
    latency_s: list[float]
    end_s: float
    dispatcher: Dispatcher
    refused: list[int]


def simulate(
    devices: Sequence[SimulatedDevice],
    arrivals: Sequence[tuple[float, int]],
    *,
    offline: bool = False,
    admit_s: float | None = None,
    limits: Limits = _DEFAULT,
    seed: int = 0,
) -> Outcome:
    """Run works of (arrival time in s, rows) on simulated devices.

    Args:
        devices: The bed.
        arrivals: Works, in order of time.
        offline: All rows known: water-fill instead of earliest finish.
        admit_s: Refuse works whose predicted latency is above this, as a server does.
        limits: For the dispatcher.
        seed: Decides the jitter.
    """
    return _Simulation(devices, arrivals, offline, admit_s, limits, seed).run()


class _Simulation:
    def __init__(
        self,
        devices: Sequence[SimulatedDevice],
        arrivals: Sequence[tuple[float, int]],
        offline: bool,
        admit_s: float | None,
        limits: Limits,
        seed: int,
    ) -> None:
        self._beds = {device.name: device for device in devices}
        parts = [
            (Device(x.name, ServiceModel(x.base_s, x.row_s) if x.known else ServiceModel(), x.largest), x.lanes)
            for x in devices
        ]
        self._dispatcher = Dispatcher(parts, limits)
        self._admit_s = admit_s
        self._dispatcher.mode = Mode.OFFLINE if offline else Mode.ONLINE
        self._works = [Work(rows, at, index) for index, (at, rows) in enumerate(arrivals)]
        self._outcome = Outcome(
            [0] * len(arrivals), [None] * len(arrivals), [math.nan] * len(arrivals), 0.0, self._dispatcher, []
        )
        self._rng = np.random.default_rng(seed)
        self._events: list[tuple[float, int, str, int]] = []
        self._count = 0
        for index, (at, _) in enumerate(arrivals):
            self._at(at, "arrive", index)

    def _at(self, when: float, kind: str, index: int) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, kind, index))

    def run(self) -> Outcome:
        while self._events:
            now, _, kind, index = heapq.heappop(self._events)
            if kind == "arrive":
                self._arrive(self._works[index], now)
            elif kind == "end":
                self._settle(self._dispatcher.finished(self._dispatcher.lanes[index], now), now)
            elif kind == "die":
                lane = self._dispatcher.lanes[index]
                self._settle(self._dispatcher.failed(lane, now, DeviceFailed("simulated death"), dead=True), now)
            else:
                self._settle(self._dispatcher.overdue(now), now)
            self._start(now)
        return self._outcome

    def _arrive(self, work: Work, now: float) -> None:
        if self._admit_s is not None and not self._dispatcher.admits(work.rows, self._admit_s, now):
            self._outcome.refused.append(work.payload)
        else:
            self._dispatcher.add(work)

    def _settle(self, works: Sequence[Work], now: float) -> None:
        for work in works:
            self._outcome.answers[work.payload] += work.error is None
            self._outcome.errors[work.payload] = work.error
            self._outcome.latency_s[work.payload] = now - work.arrived_s
            self._outcome.end_s = now

    def _start(self, now: float) -> None:
        for lane in self._dispatcher.lanes:
            batch = self._dispatcher.take(lane, now)
            if batch is None:
                continue
            bed = self._beds[lane.device.name]
            noise = math.exp(self._rng.normal(0.0, bed.jitter)) if bed.jitter else 1.0
            seconds = (bed.base_s + bed.row_s * batch.rows) * noise * bed.factor(now)
            if now + seconds > bed.dies_at_s:
                self._at(max(now, bed.dies_at_s), "die", lane.index)
            elif math.isfinite(seconds):
                self._at(now + seconds, "end", lane.index)
            limits = self._dispatcher.limits
            patience = max(limits.stall_s, limits.stall_factor * lane.device.model.predict(batch.rows))
            self._at(now + patience * 1.001, "check", 0)
            self._at(now + patience * 1.001 + limits.give_up_s * 1.001, "check", 0)
        wake = self._dispatcher.wake_at(now)
        if wake is not None:
            self._at(max(wake, now), "check", 0)
