"""A program in a process of its own, with its arrays in memory that both sides map: nothing is pickled.

`ProcessProgram` is the parent's side, running this file is the child's. A call copies the inputs into the shared
memory, sends one JSON line with their shapes, and reads the outputs from where the child wrote them.
"""

import contextlib
import json
import math
import mmap
import os
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hasten.children import Child, follow_parent, readable
from hasten.errors import HastenError

_LOAD_SECONDS = 300.0
_ALIGN = 64
_FIRST_BYTES = 1 << 20


class ProcessDied(HastenError):
    """The process of a program ended."""


def _reserve(path: Path, size: int) -> None:
    """Make a file `size` bytes large, of memory that is there: what is only promised ends a process when it is touched.

    Raises:
        HastenError: There is not as much.
    """
    if not hasattr(os, "posix_fallocate"):
        os.truncate(path, size)
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise HastenError(
                f"{path.parent} must have room for {size} bytes, but: {error.strerror}. Give it more (in a container "
                "by --shm-size), or serve smaller batches."
            ) from error


class SharedMemory:
    """A growing file in memory (where the system has /dev/shm) that two processes map."""

    def __init__(self, path: Path | None = None) -> None:
        if path is None:
            folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
            handle, name = tempfile.mkstemp(prefix="hasten-", dir=folder)
            os.close(handle)
            path = Path(name)
            _reserve(path, _FIRST_BYTES)
        self.path = path
        self._map()

    def _map(self) -> None:
        with self.path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    def at_least(self, size: int) -> None:
        """Make the file and the mapping at least `size` bytes large."""
        if size > self.path.stat().st_size:
            _reserve(self.path, 2 * size)
        if size > len(self._memory):
            self._map()  # the old mapping lives on under the arrays that still use it

    def write(self, arrays: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Copy arrays in; returns where they are."""
        places, end = [], 0
        for x in arrays:
            places.append({"at": end, "shape": list(x.shape), "dtype": str(x.dtype)})
            end += -(-x.nbytes // _ALIGN) * _ALIGN
        self.at_least(max(1, end))
        for x, place in zip(arrays, places, strict=True):
            np.copyto(self._view(place), x)
        return places

    def read(self, places: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        """The arrays at `places`, without a copy: valid until the next write."""
        end = max((p["at"] + _bytes(p) for p in places), default=1)
        self.at_least(max(1, end))
        return [self._view(place) for place in places]

    def _view(self, place: Mapping[str, Any]) -> np.ndarray:
        shape, dtype = tuple(place["shape"]), np.dtype(place["dtype"])
        if 0 in shape:
            return np.empty(shape, dtype)
        count = math.prod(shape)
        return np.frombuffer(self._memory, dtype, count, place["at"]).reshape(shape)

    def unlink(self) -> None:
        """Remove the file; mappings stay valid until they are dropped."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


def _bytes(place: Mapping[str, Any]) -> int:
    count: int = math.prod(place["shape"])
    return count * int(np.dtype(place["dtype"]).itemsize)


class ProcessProgram:
    """An artifact loaded in a child process; call it like a loaded program, from one thread at a time.

    Args:
        folder: The artifact.
        options: Options of its target to load it with.
        cores: Cores that the child may run on; empty: those of this process.

    Raises:
        ProcessDied: The child ended, while loading or during a call.
        HastenError: The program raised.
    """

    def __init__(
        self, folder: Path, options: Mapping[str, Any] | None = None, cores: frozenset[int] = frozenset()
    ) -> None:
        self._inputs, self._outputs = SharedMemory(), SharedMemory()
        self._lock = threading.Lock()
        self._process = Child([sys.executable, "-m", "hasten.engine.process"])
        first = {
            "folder": str(folder.resolve()),
            "options": dict(options or {}),
            "cores": sorted(cores),
            "inputs": str(self._inputs.path),
            "outputs": str(self._outputs.path),
        }
        try:
            self._send(first)
            self._answer(_LOAD_SECONDS)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The child's process id."""
        pid: int = self._process.pid
        return pid

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run one batch in the child."""
        with self._lock:
            self._send({"inputs": self._inputs.write(inputs)})
            places = self._answer(None)["outputs"]
            return tuple(y.copy() for y in self._outputs.read(places))

    def kill(self) -> None:
        """End the child at once; a call that is running raises `ProcessDied`."""
        self._process.kill()

    def close(self) -> None:
        """End the child and free the shared memory."""
        self._process.end(patience_s=2)
        self._inputs.unlink()
        self._outputs.unlink()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise ProcessDied(f"The program's process {self._process.pid} ended: {error}") from error

    def _answer(self, seconds: float | None) -> dict[str, Any]:
        stream = self._process.stdout
        assert stream is not None
        if seconds is not None and not readable(stream, seconds):
            raise ProcessDied(f"The program's process {self._process.pid} must load within {seconds:g} s, but did not.")
        try:
            line = stream.readline()
        except (OSError, ValueError):
            line = b""
        if not line:
            raise ProcessDied(f"The program's process {self._process.pid} ended with exit code {self._process.poll()}.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise HastenError(answer["error"])
        return answer


def _serve() -> None:
    follow_parent()
    channel_in, channel_out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a runtime prints must not mix with the answers

    def reply(message: dict[str, Any]) -> None:
        channel_out.write(json.dumps(message).encode() + b"\n")
        channel_out.flush()

    from hasten.artifact import load

    try:
        first = json.loads(channel_in.readline())
        if first["cores"]:
            os.sched_setaffinity(0, first["cores"])  # before loading: a runtime's threads inherit it
        inputs, outputs = SharedMemory(Path(first["inputs"])), SharedMemory(Path(first["outputs"]))
        program = load(first["folder"], options=first["options"])
    except Exception as error:
        reply({"error": f"{type(error).__name__}: {error}"})
        return
    reply({})
    for line in channel_in:
        try:
            found = program(*inputs.read(json.loads(line)["inputs"]))
            reply({"outputs": outputs.write([np.ascontiguousarray(y) for y in found])})
        except Exception as error:
            reply({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    _serve()
