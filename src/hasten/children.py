"""Child processes that serve their parent over pipes, and never outlive it. Imports no torch.

Every child holds one end of a pipe that nobody writes to, the lifeline, and has asked the system for a signal when it
changes: when the parent ends, by whatever means, the system closes the other end and the signal ends the child's whole
process group. No code of the child has to run for that, so it works in the middle of a long native call too. (The
parent-death signal of Linux would not do: it is sent when the *thread* that started the child ends.)
"""

import contextlib
import fcntl
import os
import selectors
import signal
import subprocess
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_LIFELINE = "HASTEN_LIFELINE"


class Child(subprocess.Popen[bytes]):
    """A process with pipes to its standard input and output, in a session of its own, with a lifeline.

    A Ctrl-C does not reach it: that is for the parent, which ends its children itself.

    Args:
        command: What to run; it must call `follow_parent`.
        log: Where its standard error goes; None: the parent's.
        environment: Its environment; None: the parent's.
    """

    def __init__(
        self, command: Sequence[str], log: IO[bytes] | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        theirs, ours = os.pipe()
        self._cut = weakref.finalize(self, os.close, ours)
        try:
            super().__init__(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                pass_fds=(theirs,),
                env={**(os.environ if environment is None else environment), _LIFELINE: str(theirs)},
            )
        finally:
            os.close(theirs)

    def kill_all(self) -> None:
        """Kill it and what it started, and wait for its end."""
        if self.returncode is None:  # not waited for yet, so that its number cannot be another's by now
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def end(self, patience_s: float) -> None:
        """Close its input, which a well-behaved child takes as its end, and kill it after `patience_s`."""
        _close(self.stdin)
        try:
            self.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            self.kill_all()
        # Not sooner: a thread that waits for its answer holds the stream until there is one, or no child.
        _close(self.stdout)
        self._cut()


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.close()


def readable(stream: IO[bytes] | int, within_s: float) -> bool:
    """Whether there is something to read, or the end, within so many seconds.

    Not by `select.select`, which takes no file descriptor above 1023: a busy server has more.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        return bool(selector.select(within_s))


def follow_parent() -> None:
    """In a child: end when the parent ends, and be what the system ends first when memory runs out.

    Does nothing in a process that no `Child` stands for.
    """
    lifeline = os.environ.pop(_LIFELINE, "")
    if not lifeline:
        return
    handle = int(lifeline)
    os.set_inheritable(handle, False)
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # which is to end
    fcntl.fcntl(handle, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) | os.O_ASYNC)
    if readable(handle, 0):  # the parent had ended before
        os._exit(1)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
