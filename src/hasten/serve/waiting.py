"""Requests between a model's engine and the event loop: answers come back in bulk, time-outs share one timer."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from hasten.engine.work import Work

Outputs = tuple[np.ndarray, ...]
Tell = Callable[[Outputs | None, BaseException | None], None]

_LOG = logging.getLogger("hasten.serve")
_SWEEPS = 16


class TooLate(Exception):
    """A request had no answer in time."""


class Call:
    """A request that waits: whom to tell in the event loop, and by when.

    Attributes:
        work: What the engine knows it as.
    """

    __slots__ = ("deadline_s", "tell", "work")

    def __init__(self, tell: Tell, deadline_s: float) -> None:
        self.tell, self.deadline_s = tell, deadline_s
        self.work: Work | None = None


class Waiting:
    """Calls that wait for answers in one event loop; only `answered` may be called from other threads.

    Args:
        loop: The event loop.
        timeout_s: How long a call may wait.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self.loop = loop
        self._timeout_s = timeout_s
        self._calls: dict[Call, None] = {}
        self._answers: deque[tuple[Call, Outputs | None, BaseException | None]] = deque()
        self._woken = False
        self._sweeping = False

    def open(self, tell: Tell) -> Call:
        """A new call; `tell(outputs, error)` is called once, in the loop, unless the call is dropped before."""
        call = Call(tell, self.loop.time() + self._timeout_s)
        self._calls[call] = None
        if not self._sweeping:
            self._sweeping = True
            self.loop.call_later(self._timeout_s / _SWEEPS, self._sweep)
        return call

    def answered(self, call: Call, outputs: Outputs | None, error: BaseException | None) -> None:
        """Hand an answer over, from any thread; many that come close together wake the loop once."""
        self._answers.append((call, outputs, error))
        if self._woken:
            return
        self._woken = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped
            self.loop.call_soon_threadsafe(self._tell_all)

    def drop(self, call: Call) -> bool:
        """Nobody waits for this call any more: its rows need not run. False: it was over already."""
        if self._calls.pop(call, 0) is not None:
            return False
        if call.work is not None:
            call.work.cancelled = True
            call.work = None
        return True

    def _tell_all(self) -> None:
        self._woken = False  # before emptying: an answer that comes meanwhile wakes the loop again
        while self._answers:
            call, outputs, error = self._answers.popleft()
            call.work = None  # they know each other: a cycle would be left to the garbage collector
            if self._calls.pop(call, 0) is None:
                self._tell(call, outputs, error)

    def _tell(self, call: Call, outputs: Outputs | None, error: BaseException | None) -> None:
        try:
            call.tell(outputs, error)
        except Exception:  # one that fails must not keep the others waiting
            _LOG.exception("an answer could not be handed over")

    def _sweep(self) -> None:
        now = self.loop.time()
        late = []
        for call in self._calls:  # in the order of their deadlines
            if call.deadline_s > now:
                break
            late.append(call)
        for call in late:
            self.drop(call)
            self._tell(call, None, TooLate())
        self._sweeping = bool(self._calls)
        if self._sweeping:
            self.loop.call_later(self._timeout_s / _SWEEPS, self._sweep)
