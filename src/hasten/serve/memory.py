"""Memory of a server that loads models again and again: it must not grow with every reload.

glibc gives threads heaps of their own, and a heap keeps what was freed in it. Every engine brings new threads, so each
reload left some megabytes in another heap (docs/decisions/2026-11-28-engine-quiet.md).
"""

import ctypes
import gc

_M_ARENA_MAX = -8  # malloc.h


def share_one_heap() -> None:
    """One heap for all threads, where the C library is glibc; to be called before models bring threads."""
    _glibc("mallopt", _M_ARENA_MAX, 1)


def settle() -> None:
    """What is loaded stays, and requests leave no cycles: look for garbage seldom, and not among what is loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def give_back() -> None:
    """Return to the system what a model that was taken away has left."""
    gc.collect()
    _glibc("malloc_trim", 0)


def _glibc(name: str, *arguments: int) -> None:
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # another C library or system
        return
    function(*arguments)
