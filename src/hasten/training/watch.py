"""Watch a training from outside: how long its steps take, and a time after which it stops."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Watch:
    """What `watched` saw of the last training inside it.

    Attributes:
        limit_s: Longest time in the loop; None: any.
        step_s: Seconds of every step this process took, the first (which warms up) included.
        stopped_after: Steps that were done when time ran out, counted from the first of the run; None: it did not.
            The option `stop_after` with this number gives the same weights again.
    """

    limit_s: float | None = None
    step_s: list[float] = field(default_factory=list)
    stopped_after: int | None = None
    _end: float = float("inf")
    _last: float = 0.0

    def start(self) -> None:
        """The loop begins."""
        self.step_s.clear()
        self.stopped_after = None
        self._last = time.perf_counter()
        self._end = float("inf") if self.limit_s is None else self._last + self.limit_s

    def step(self, steps_done: int, last: int) -> bool:
        """A step is done; returns whether it was the last one, because it is step `last` or because time is up."""
        now = time.perf_counter()
        self.step_s.append(now - self._last)
        self._last = now
        if steps_done >= last:
            return True
        if now >= self._end:
            self.stopped_after = steps_done
        return self.stopped_after is not None

    @property
    def typical_step_s(self) -> float:
        """Median seconds per step without the first; 0 if there was none."""
        return statistics.median(self.step_s[1:] or self.step_s or [0.0])


_watching: ContextVar[Watch | None] = ContextVar("_watching", default=None)


@contextmanager
def watched(limit_s: float | None = None) -> Iterator[Watch]:
    """Watch the training runs inside this context, and stop each after `limit_s` seconds (at least one step)."""
    watch = Watch(limit_s)
    token = _watching.set(watch)
    try:
        yield watch
    finally:
        _watching.reset(token)


def current() -> Watch:
    """The watch of the context, or one that nobody looks at."""
    return _watching.get() or Watch()
