"""End a child process that serves its parent over pipes. Imports no torch."""

import contextlib
import subprocess


def end_child(child: subprocess.Popen[bytes], patience_s: float) -> None:
    """Close the pipes, which a well-behaved child takes as its end, and kill it after `patience_s`."""
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    try:
        child.wait(timeout=patience_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
