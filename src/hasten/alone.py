"""One process at a time in a folder. Imports no torch."""

import fcntl
import os
from typing import IO

LOCK = ".lock"
"""Name of the file in the folder that is locked; it stays."""


def take(lock: IO[str]) -> str:
    """Lock an open file for this process until it is closed; returns the process that has it, empty if it is this one.

    Args:
        lock: Opened with "a+". It holds the number of the process that has it.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        return lock.read().strip() or "?"
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return ""
