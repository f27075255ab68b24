"""The program that candidates are timed against: the fastest so far, kept running from one timing to the next."""

from collections.abc import Callable
from contextlib import suppress

from hasten.measure.worker import ProgramFailed, Worker
from hasten.search.trial import Trial


class Pacemaker:
    """A trial's program, started when it is first asked for.

    What disturbs a machine for minutes hits an interpreter of many small calls otherwise than a compiled program on all
    cores: minutes apart, one program was 7 and 10 times as fast as the original. Against a program of their kind,
    candidates are measured alike at any time; the original only sets the scale.

    Args:
        trial: A trial that was timed.
        start: Starts its program.
    """

    def __init__(self, trial: Trial, start: Callable[[Trial], Worker]) -> None:
        self.trial = trial
        self._start = start
        self._worker: Worker | None = None

    def program(self) -> Worker | None:
        """The running program; None if it cannot run."""
        if self._worker is not None and (self._worker.failure or not self._worker.runs):
            self.close()
        if self._worker is None:
            with suppress(ProgramFailed):
                self._worker = self._start(self.trial)
        return self._worker

    def close(self) -> None:
        """End the program; it is started again when it is asked for."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
