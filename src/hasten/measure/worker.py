"""One program in one process of its own: `Worker` is the parent's side, running this file is the child's.

A crash, a leak or a thread pool of one runtime cannot touch another's measurement. Parent and child speak JSON lines
over pipes; arrays travel as raw files mapped into memory. Nothing is pickled.
"""

import atexit
import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from hasten import environments
from hasten.children import Child, follow_parent, readable
from hasten.errors import HastenError
from hasten.measure.arrays import ArrayFile
from hasten.recipe import Program, Target, make_target, name_of, options_of

_LOAD_SECONDS = 300.0
_CALL_SECONDS = 900.0
# Before calls are timed.
WARM_CALLS = 2
_STABLE = 0.05
_WARM_SECONDS = 1.5


class ProgramFailed(HastenError):
    """A compiled program raised, crashed, or did not answer in time."""


class Worker:
    """A compiled program running in a child process; a context manager.

    Args:
        target: The target that compiled `folder`.
        folder: What `target.compile` wrote.
        log: File that collects what the runtime prints.

    Attributes:
        failure: Why its last `ProgramFailed` was raised; empty if none was.

    Raises:
        ProgramFailed: The program cannot be loaded.
    """

    def __init__(self, target: Target, folder: Path, log: Path) -> None:
        self.target = target
        self.failure = ""
        self._warm: set[int] = set()
        self._log = log
        with log.open("ab") as sink:
            self._process = Child(environments.command(target, "hasten.measure.worker"), sink)
        try:
            self._call(
                _LOAD_SECONDS, command="load", name=name_of(target), options=options_of(target), folder=str(folder)
            )
        except BaseException:
            self.close()
            raise

    def time_calls(self, inputs: Sequence[ArrayFile], batch: int, seconds: float, least: int = 5) -> np.ndarray:
        """Time calls on the first `batch` rows for about `seconds`, after a short warm-up; returns seconds per call."""
        files = [x.to_json() for x in inputs]
        answer = self._call(_CALL_SECONDS, command="time", inputs=files, batch=batch, seconds=seconds, least=least)
        return np.array(answer["times_s"])

    def warm_up(self, inputs: Sequence[ArrayFile], batch: int) -> int:
        """Call until the time per call is stable (or 1.5 s have passed); returns the number of calls.

        A program that was warmed up at this batch is not again: what it set up it keeps, and a timing begins with calls
        that do not count.
        """
        if batch in self._warm:
            return 0
        files = [x.to_json() for x in inputs]
        calls = int(self._call(_CALL_SECONDS, command="warm_up", inputs=files, batch=batch)["calls"])
        self._warm.add(batch)
        return calls

    def infer(self, inputs: Sequence[ArrayFile], rows: np.ndarray, folder: Path, batch: int) -> list[ArrayFile]:
        """Run the rows `rows` [n] of `inputs` in batches of `batch`; the outputs are files of n rows in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "rows.npy", rows.astype(np.int64))
        files = [x.to_json() for x in inputs]
        answer = self._call(_CALL_SECONDS, command="infer", inputs=files, folder=str(folder), batch=batch)
        return [ArrayFile.from_json(x) for x in answer["outputs"]]

    def peak_memory_bytes(self) -> int:
        """Peak resident memory of the child so far."""
        return int(self._call(30, command="memory")["peak_bytes"])

    @property
    def runs(self) -> bool:
        """Whether the child has not ended by itself."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the child."""
        self._process.end(patience_s=2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, limit_s: float, **message: Any) -> dict[str, Any]:
        process, name = self._process, name_of(self.target)
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
        except OSError as error:
            raise self._failed(f"{name}: its process ended early ({self._last_words()}).") from error
        try:
            line = self._read_line(limit_s)
        except KeyboardInterrupt:
            # Whoever uses this program next must not read the answer to this question.
            self._read_line(limit_s)
            raise
        if line is None:
            process.kill_all()
            raise self._failed(f"{name}: no answer to {message['command']!r} within {limit_s:.0f} s.")
        if not line:
            process.kill_all()
            raise self._failed(f"{name}: its process ended with {process.returncode} ({self._last_words()}).")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._failed(f"{name}: {answer['error']}")
        return answer

    def _failed(self, why: str) -> ProgramFailed:
        self.failure = why
        return ProgramFailed(why)

    def _read_line(self, limit_s: float) -> bytes | None:
        """The child's next line; empty if it ended, None if it said nothing for `limit_s`."""
        pipe = self._process.stdout
        assert pipe is not None
        return pipe.readline() if readable(pipe, limit_s) else None

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        return lines[-1][:200] if lines else "it printed nothing"


def _serve() -> None:
    """The child's loop: one JSON line in, one JSON line out, until the parent closes the pipe."""
    follow_parent()
    # Runtimes print to standard output; keep the pipe for answers alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    program: Program | None = None
    for line in sys.stdin:
        message = json.loads(line)
        command = message.pop("command")
        try:
            if command == "load":
                program = make_target(message["name"], message["options"]).load(Path(message["folder"]))
                answer: dict[str, Any] = {}
            elif command == "memory":
                answer = {"peak_bytes": _peak_memory_bytes()}
            else:
                assert program is not None
                answer = _COMMANDS[command](program, **message)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {str(error).strip()[:500]}"}
        answers.write(json.dumps(answer) + "\n")


def _peak_memory_bytes() -> int:
    """Peak resident memory of this process since it started its program."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would also count the parent's memory at the time of the fork
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _rows(inputs: list[dict[str, Any]], batch: int) -> list[np.ndarray]:
    """The first `batch` rows of every input, repeated when there are fewer."""
    arrays = [ArrayFile.from_json(x).open() for x in inputs]
    return [np.ascontiguousarray(np.resize(x[:batch], (batch, *x.shape[1:]))) for x in arrays]


def _time(program: Program, inputs: list[dict[str, Any]], batch: int, seconds: float, least: int) -> dict[str, Any]:
    arrays = _rows(inputs, batch)
    for _ in range(WARM_CALLS):
        program(*arrays)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        program(*arrays)
        times.append(time.perf_counter() - start)
    return {"times_s": times}


def _warm_up(program: Program, inputs: list[dict[str, Any]], batch: int) -> dict[str, Any]:
    arrays = _rows(inputs, batch)
    times: list[float] = []
    end = time.perf_counter() + _WARM_SECONDS
    while time.perf_counter() < end or len(times) < 2:
        start = time.perf_counter()
        program(*arrays)
        times.append(time.perf_counter() - start)
        if len(times) >= 20:
            before, now = np.median(times[-20:-10]), np.median(times[-10:])
            if abs(now - before) <= _STABLE * before:
                break
    return {"calls": len(times)}


def _call(program: Program, arrays: list[np.ndarray], rows: np.ndarray) -> tuple[np.ndarray, ...]:
    return program(*(np.ascontiguousarray(x[rows]) for x in arrays))


def _infer(program: Program, inputs: list[dict[str, Any]], folder: str, batch: int) -> dict[str, Any]:
    arrays = [ArrayFile.from_json(x).open() for x in inputs]
    rows = np.load(Path(folder) / "rows.npy")
    writers: list[Any] = []
    shapes: list[tuple[tuple[int, ...], str]] = []
    with contextlib.ExitStack() as stack:
        for start in range(0, len(rows), batch):
            chosen = rows[start : start + batch]
            # The last batch is filled up: a program may have been compiled for one batch size only.
            filled = np.resize(chosen, batch)
            outputs = [y[: len(chosen)] if len(y) == batch else y for y in _call(program, arrays, filled)]
            if not writers:
                paths = [Path(folder) / f"output_{index}.bin" for index in range(len(outputs))]
                writers = [stack.enter_context(path.open("wb")) for path in paths]
                shapes = [(y.shape[1:], str(y.dtype)) for y in outputs]
            for writer, y in zip(writers, outputs, strict=True):
                if len(y) != len(chosen):
                    raise ValueError(f"{len(chosen)} rows went in, but {len(y)} came out")
                writer.write(np.ascontiguousarray(y).data)
    files = [
        ArrayFile(Path(folder) / f"output_{index}.bin", (len(rows), *shape), dtype)
        for index, (shape, dtype) in enumerate(shapes)
    ]
    return {"outputs": [x.to_json() for x in files]}


_COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {"time": _time, "warm_up": _warm_up, "infer": _infer}

if __name__ == "__main__":
    _serve()
    # Taking an interpreter with torch in it apart takes longer than some measurements; the system does it at once.
    atexit._run_exitfuncs()
    os._exit(0)
