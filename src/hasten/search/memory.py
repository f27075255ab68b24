"""Memory that a technique has freed goes back to the system before the next one asks for more."""

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Hand freed memory back to the system, where its allocator keeps it: glibc's does, one training beside the next.

    Does nothing where the allocator has no such function.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
