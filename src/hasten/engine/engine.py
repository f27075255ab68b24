"""The live engine: lanes of one or several devices as threads around the `Dispatcher`."""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

import numpy as np

from hasten.engine.dispatch import Dispatcher
from hasten.engine.process import ProcessDied
from hasten.engine.profile import Profile, profile
from hasten.engine.request import Answer, Request, checked_inputs, gather
from hasten.engine.runner import Runner, check_alike, open_artifact
from hasten.engine.service import ServiceModel
from hasten.engine.work import Batch, Device, Lane, Limits, Mode, Work
from hasten.errors import HastenError, InvalidInput
from hasten.recipe import Program

_MONITOR_S = 0.1
_LATENCIES = 4096
_ROUNDS_AHEAD = 3
_REVIVALS = 5
_REVIVAL_PAUSE_S = 0.2

Outputs = tuple[np.ndarray, ...]


class Engine:
    """Turns one or several artifacts of the same inputs into throughput; a context manager.

    Every batch goes where it will finish first; a device that dies or stalls has its rows sent once more, elsewhere if
    there is an elsewhere.

    Args:
        devices: Artifact folders, or runners made by hand; several are used together.
        replicas: Batches at a time of every artifact; 0: cores divided by threads.
        threads: Threads inside one call; 0: cores divided by replicas.
        processes: Every replica in a process of its own: for targets that hold Python's lock. One that dies is started
            again.
        pinned: Every replica keeps to cores of its own.
        largest: Largest batch; None: the measured knee (smallest batch within 97% of the best throughput).
        bound_ms: Latency bound; batches take at most half of it.
        linger_ms: How long an idle device may wait for a batch to fill; 0: start at once with what is there.
        profile_s: Time for measuring service times at the start; 0: learn them from the work itself.
        limits: Everything else that the scheduler keeps to.

    Attributes:
        inputs: Name, dtype and shape of every input; None is any size. Empty: anything.
        outputs: Dtype and shape of every output.

    Raises:
        InvalidInput: No device, or the devices take different inputs.
    """

    def __init__(
        self,
        *devices: str | os.PathLike[str] | Runner,
        replicas: int = 0,
        threads: int = 0,
        processes: bool = False,
        pinned: bool = False,
        largest: int | None = None,
        bound_ms: float | None = None,
        linger_ms: float = 0.0,
        profile_s: float = 0.5,
        limits: Limits | None = None,
    ) -> None:
        if not devices:
            raise InvalidInput("An engine must have at least one device, but got none. Give it artifacts.")
        if largest is not None and largest < 1:
            raise InvalidInput(f"`largest` must be at least 1, but got {largest}.")
        if bound_ms is not None and not bound_ms > 0:
            raise InvalidInput(f"`bound_ms` must be above 0, but got {bound_ms:g}.")
        self.runners: list[Runner] = []
        shape: dict[str, Any] = {"replicas": replicas, "threads": threads, "processes": processes, "pinned": pinned}
        with contextlib.ExitStack() as opened:
            for device in devices:
                if not isinstance(device, Runner):
                    device = open_artifact(device, **shape)
                    opened.callback(device.close)
                self.runners.append(device)
            check_alike(self.runners)
            self.profiles = _profiles(self.runners, largest, profile_s)
            opened.pop_all()
        # Any number of rows, even where a device takes one batch size only.
        self.inputs = tuple({**x, "shape": [None, *x["shape"][1:]]} for x in self.runners[0].inputs)
        self.outputs = self.runners[0].outputs
        self._dispatcher = Dispatcher(
            [
                (_device(runner, found, largest), len(runner.lanes))
                for runner, found in zip(self.runners, self.profiles, strict=True)
            ],
            limits or Limits(bound_s=None if bound_ms is None else bound_ms / 1e3, linger_s=linger_ms / 1e3),
        )
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._requests = self._failures = self._respawned = 0
        self._since = time.perf_counter()
        self._threads = [threading.Thread(target=self._monitor, name="hasten-monitor", daemon=True)]
        self._places = [(runner, number) for runner in self.runners for number in range(len(runner.lanes))]
        for lane, place in zip(self._dispatcher.lanes, self._places, strict=True):
            name = f"hasten-lane-{lane.index}"
            self._threads.append(threading.Thread(target=self._run, args=(lane, *place), name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    @classmethod
    def tune(cls, path: str | os.PathLike[str], *, bound_ms: float | None = None, **options: Any) -> "Engine":
        """An engine of the shape - replicas, threads, largest batch - that measures best; see `hasten.engine.tune`.

        Args:
            path: An artifact.
            bound_ms: Latency bound that the shape has to keep.
            options: Everything else that the engine takes.
        """
        from hasten.engine.tune import tune

        best = tune(path, bound_ms=bound_ms)[0]
        shape = {
            "replicas": best.replicas, "threads": best.threads, "largest": best.batch, "pinned": best.pinned
        }  # fmt: skip
        return cls(path, bound_ms=bound_ms, **(shape | options))

    @property
    def devices(self) -> list[str]:
        """Names of the devices."""
        return [runner.name for runner in self.runners]

    def __call__(self, *inputs: Any) -> Outputs:
        """Answer one request and wait for it; see `submit`."""
        return self.submit(*inputs).result()

    def submit(self, *inputs: Any) -> "Future[Outputs]":
        """Queue one request of any number of rows; may be called from any thread.

        Args:
            inputs: One array per input, [rows, ...], not to be changed before the answer is there.

        Returns:
            A future of the outputs, one array per output with the same number of rows.

        Raises:
            InvalidInput: An input has the wrong number, dtype or shape.
        """
        future = Answer()
        work = self.start(checked_inputs(inputs, self.inputs), future.settle)
        future.belongs_to(work)
        return future

    def start(self, inputs: Sequence[np.ndarray], done: Callable[[Outputs | None, BaseException | None], None]) -> Work:
        """Queue checked inputs; `done(outputs, error)` is called once, from a lane's thread, and must not block.

        Raises:
            HastenError: The engine is closed.
        """
        key = tuple(x.shape[1:] for x in inputs)
        work = Work(len(inputs[0]), time.perf_counter(), Request(inputs, done), key)
        with self._changed:
            if self._closing.is_set():
                raise HastenError("The engine must be open to take work, but was closed.")
            self._dispatcher.add(work)
            self._requests += 1
            self._wake()
        return work

    def map(self, source: Iterable[Any]) -> Iterator[Outputs]:
        """Answer a stream in order, looking only a few rounds ahead; all devices finish together (water-fill).

        Args:
            source: Arrays [rows, ...], or tuples of arrays for several inputs.
        """
        ahead_rows = _ROUNDS_AHEAD * sum(lane.device.largest for lane in self._dispatcher.lanes)
        waiting: deque[tuple[int, Future[Outputs]]] = deque()
        rows_ahead = 0
        self._set_mode(Mode.OFFLINE, more=True)
        try:
            for item in source:
                inputs = item if isinstance(item, (tuple, list)) else (item,)
                future = self.submit(*inputs)
                waiting.append((len(inputs[0]), future))
                rows_ahead += waiting[-1][0]
                while rows_ahead > ahead_rows and len(waiting) > 1:
                    rows, first = waiting.popleft()
                    rows_ahead -= rows
                    yield first.result()
            self._set_mode(Mode.OFFLINE, more=False)
            while waiting:
                yield waiting.popleft()[1].result()
        finally:
            for _, future in waiting:
                future.cancel()
            self._set_mode(Mode.ONLINE, more=False)

    @property
    def waiting_rows(self) -> int:
        """Rows that no device has started."""
        return self._dispatcher.waiting_rows

    def admits(self, rows: int, bound_s: float) -> bool:
        """Whether `rows` that arrive now would be answered within the bound; always when a device is idle."""
        with self._changed:
            return self._dispatcher.admits(rows, bound_s, time.perf_counter())

    def predicted_latency_s(self, rows: int = 1) -> float:
        """Seconds until a request of `rows` that arrives now would be answered; infinite when nothing is alive."""
        with self._changed:
            return self._dispatcher.predicted_latency(rows, time.perf_counter())

    def statistics(self) -> dict[str, Any]:
        """Counters and states as plain values: queue, devices, utilisation since the start, recent latencies in ms."""
        with self._changed:
            elapsed = time.perf_counter() - self._since
            latencies = np.array(self._latencies) * 1e3
            return {
                "requests": self._requests,
                "failures": self._failures,
                "resent": self._dispatcher.resent,
                "respawned": self._respawned,
                "queue_rows": self._dispatcher.waiting_rows,
                "uptime_s": elapsed,
                "latency_ms": {
                    f"p{q}": float(np.percentile(latencies, q)) if len(latencies) else None for q in (50, 90, 99)
                },
                "devices": [self._device_statistics(device, elapsed) for device in self._dispatcher.devices],
            }

    def close(self, *, drain_s: float = 30.0) -> None:
        """Answer what is queued for up to `drain_s`, then stop; what is left fails."""
        with self._changed:
            self._changed.wait_for(lambda: self._dispatcher.idle or self._closing.is_set(), drain_s)
            if self._closing.is_set():
                return
            self._closing.set()
            left = self._dispatcher.abandon(HastenError("The engine was closed before the request was answered."))
            self._changed.notify_all()
        self._answer(left)
        for thread in self._threads:
            thread.join(1.0)
        for runner in self.runners:
            runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(drain_s=30.0 if error is None else 0.0)

    def _wake(self) -> None:
        """Let idle lanes look: one of equals is enough, unequal ones must compare."""
        if len(self.runners) == 1:
            self._changed.notify(1)
        else:
            self._changed.notify_all()

    def _set_mode(self, mode: Mode, *, more: bool) -> None:
        with self._changed:
            self._dispatcher.mode, self._dispatcher.more_coming = mode, more
            self._changed.notify_all()

    def _run(self, lane: Lane, runner: Runner, number: int) -> None:
        runner.pin(number)
        program = runner.lanes[number]
        while (batch := self._next(lane)) is not None:
            try:
                outputs = self._compute(lane, program, batch)
            except Exception as error:
                dead = isinstance(error, ProcessDied)
                reviving = dead and runner.respawn is not None
                with self._changed:
                    over = self._dispatcher.failed(lane, time.perf_counter(), error, dead=dead, reviving=reviving)
                    self._changed.notify_all()
                self._answer(over)
                if dead:
                    revived = self._revive(lane, runner, number) if reviving else None
                    if revived is None:
                        return
                    program = revived
                continue
            offset = 0
            for piece in batch.pieces:
                if not piece.work.over:
                    part = tuple(y[offset : offset + piece.rows] for y in outputs)
                    piece.work.payload.parts.append((piece.start, piece.stop, part))
                offset += piece.rows
            with self._changed:
                over = self._dispatcher.finished(lane, time.perf_counter())
                if len(self.runners) > 1 or self._dispatcher.idle:
                    self._changed.notify_all()
            self._answer(over)

    def _revive(self, lane: Lane, runner: Runner, number: int) -> Program | None:
        """Start a dead lane's program again, with longer and longer pauses; None: it stays dead."""
        assert runner.respawn is not None
        for attempt in range(_REVIVALS):
            if self._closing.wait(_REVIVAL_PAUSE_S * (2**attempt - 1)):
                return None
            try:
                program = runner.respawn(number)
            except HastenError as failure:
                error = failure
                continue
            with self._changed:
                self._dispatcher.revived(lane)
                self._respawned += 1
                self._changed.notify_all()
            return program
        with self._changed:
            over = self._dispatcher.given_up(lane, error)
            self._changed.notify_all()
        self._answer(over)
        return None

    def _next(self, lane: Lane) -> Batch | None:
        with self._changed:
            while not self._closing.is_set():
                now = time.perf_counter()
                batch = self._dispatcher.take(lane, now)
                if batch is not None:
                    if self._dispatcher.waiting_rows:
                        self._wake()
                    return batch
                wake = self._dispatcher.wake_at(now)
                self._changed.wait(None if wake is None else max(0.0, wake - now))
        return None

    def _compute(self, lane: Lane, program: Program, batch: Batch) -> Outputs:
        arrays = gather(batch, lane.device.model.fixed)
        outputs = program(*arrays)
        for y in outputs:
            if y.ndim == 0 or len(y) != len(arrays[0]):
                raise HastenError(
                    f"A program must answer every row, but {len(arrays[0])} went in and the shape {y.shape} came out."
                )
        return outputs

    def _answer(self, works: Sequence[Work]) -> None:
        now = time.perf_counter()
        for work in works:
            request: Request = work.payload
            if work.error is not None:
                self._failures += 1
                request.done(None, work.error)
            else:
                self._latencies.append(now - work.arrived_s)
                request.done(request.assemble(work.rows), None)

    def _monitor(self) -> None:
        while not self._closing.wait(_MONITOR_S):
            with self._changed:
                over = self._dispatcher.overdue(time.perf_counter())
                for runner, number in (self._places[x.index] for x in self._dispatcher.hopeless(time.perf_counter())):
                    if runner.kill is not None:
                        runner.kill(number)
                if over or self._dispatcher.waiting_rows:
                    self._changed.notify_all()
            self._answer(over)

    def _device_statistics(self, device: Device, elapsed: float) -> dict[str, Any]:
        lanes = [lane for lane in self._dispatcher.lanes if lane.device is device]
        state = "dead" if all(x.dead for x in lanes) else "stalled" if all(x.stalled for x in lanes) else "ready"
        return {
            "name": device.name,
            "state": state,
            "lanes": len(lanes),
            "busy_lanes": sum(lane.batch is not None for lane in lanes),
            "largest_batch": device.largest,
            "rows": device.rows_done,
            "batches": device.batches_done,
            "busy_s": device.busy_s,
            "utilisation": device.busy_s / (len(lanes) * elapsed) if elapsed > 0 else 0.0,
            "service_ms": {"base": device.model.base_s * 1e3, "row": device.model.row_s * 1e3},
        }


def _profiles(runners: Sequence[Runner], largest: int | None, seconds: float) -> list[Profile]:
    if seconds > 0 and all(runner.example for runner in runners):
        return (
            profile(runners, seconds=seconds) if largest is None else profile(runners, largest=largest, seconds=seconds)
        )
    return [Profile(0.0, 0.0, runner.fixed or largest or 1, {}) for runner in runners]


def _device(runner: Runner, found: Profile, largest: int | None) -> Device:
    model = ServiceModel(found.base_s, found.row_s, runner.fixed)
    return Device(runner.name, model, runner.fixed or largest or found.knee)
