"""Stages with bounded queues between them, overlapped: decode -> preprocess -> infer -> postprocess.

Every stage runs a function in threads of its own (decoders, numpy and runtimes release Python's lock). Results keep
the order of the source. The queues are short, so memory stays constant and a slow stage slows the source down.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from hasten.errors import InvalidInput

_POLL_S = 0.05


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline.

    Attributes:
        name: For people.
        run: Takes one item, returns one item; a returned future is waited for by a thread of the next stage, so an
            engine's `submit` keeps as many batches in flight as its queue allows.
        threads: Items at a time.
        queue: Items that may wait in front of it; 0: twice its threads.
    """

    name: str
    run: Callable[[Any], Any]
    threads: int = 1
    queue: int = 0

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise InvalidInput(f"`threads` of stage {self.name!r} must be at least 1, but got {self.threads}.")
        if self.queue < 0:
            raise InvalidInput(f"`queue` of stage {self.name!r} must be at least 0, but got {self.queue}.")


@dataclass
class StageUse:
    """How busy a stage was.

    Attributes:
        name: The stage.
        threads: Its threads.
        items: Items that it finished.
        busy_s: Seconds of its threads inside `run`, together.
        utilisation: `busy_s` / (threads * seconds since the start), between 0 and 1.
    """

    name: str
    threads: int
    items: int
    busy_s: float
    utilisation: float


class Pipeline:
    """Runs items of a source through stages; iterate over `run(source)`.

    Args:
        stages: In order; at least one.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        if not stages:
            raise InvalidInput("A pipeline must have at least one stage, but got none.")
        self.stages = list(stages)
        self._counters = [_Counter() for _ in stages]
        self._started_s = time.perf_counter()
        self._ended_s: float | None = None

    def run(self, source: Iterable[Any]) -> Iterator[Any]:
        """The results in the order of the source; an error of a stage is raised here, and ends everything.

        Args:
            source: Items; drawn only as fast as the stages take them.
        """
        stop = threading.Event()
        queues = [_Bounded(stage.queue or 2 * stage.threads, stop) for stage in self.stages]
        # The order of the results: one promise per item, bounded so that finished items cannot pile up either.
        promises = _Bounded(sum(stage.threads + (stage.queue or 2 * stage.threads) for stage in self.stages), stop)
        threads = [threading.Thread(target=_feed, args=(source, queues[0], promises), daemon=True)]
        for index in range(len(self.stages)):
            following = queues[index + 1] if index + 1 < len(queues) else None
            for _ in range(self.stages[index].threads):
                work = (self.stages[index], self._counters[index], queues[index], following)
                threads.append(threading.Thread(target=_work, args=work, daemon=True))
        self._started_s, self._ended_s = time.perf_counter(), None
        for thread in threads:
            thread.start()
        try:
            while (promise := promises.get()) is not None:
                result = promise.result()
                yield result.result() if isinstance(result, Future) else result
        finally:
            self._ended_s = time.perf_counter()
            stop.set()
            for thread in threads:
                thread.join(5.0)

    def use(self) -> list[StageUse]:
        """How busy every stage was so far."""
        elapsed = max(1e-9, (self._ended_s or time.perf_counter()) - self._started_s)
        return [
            StageUse(stage.name, stage.threads, counter.items, counter.busy_s, counter.busy_s / stage.threads / elapsed)
            for stage, counter in zip(self.stages, self._counters, strict=True)
        ]

    def bottleneck(self) -> str:
        """The name of the busiest stage; `source` when none was busy half of the time."""
        busiest = max(self.use(), key=lambda use: use.utilisation)
        return busiest.name if busiest.utilisation >= 0.5 else "source"


@dataclass
class _Counter:
    items: int = 0
    busy_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, seconds: float) -> None:
        with self.lock:
            self.items += 1
            self.busy_s += seconds


class _Stopped(Exception):
    """The pipeline ends; threads leave."""


class _Bounded:
    """A bounded queue whose waits end when the pipeline stops."""

    def __init__(self, size: int, stop: threading.Event) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(size)
        self._stop = stop

    def put(self, item: Any) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=_POLL_S)
                return
        raise _Stopped

    def get(self) -> Any:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=_POLL_S)
        raise _Stopped


def _feed(source: Iterable[Any], first: _Bounded, promises: _Bounded) -> None:
    with contextlib.suppress(_Stopped):
        try:
            for item in source:
                promise: Future[Any] = Future()
                promises.put(promise)
                first.put((promise, item))
        except _Stopped:
            raise
        except Exception as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            promises.put(failed)
        promises.put(None)


def _work(stage: Stage, counter: _Counter, own: _Bounded, following: _Bounded | None) -> None:
    with contextlib.suppress(_Stopped):
        while True:
            promise, item = own.get()
            try:
                if isinstance(item, Future):
                    item = item.result()
                start = time.perf_counter()
                result = stage.run(item)
                counter.add(time.perf_counter() - start)
            except Exception as error:
                promise.set_exception(error)
                continue
            if following is None:
                promise.set_result(result)
            else:
                following.put((promise, result))
