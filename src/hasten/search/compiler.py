"""Compilation in a process of its own: `Compiler` is the parent's side, running this file is the child's.

A compiler that hangs, crashes or runs out of memory costs the search one trial. One child compiles trial after trial;
the graph goes over as files without code (`graph.storage`), questions and answers as JSON lines. After a crash, a time
limit, or an error that is not hasten's own, the next compilation gets a new child.
"""

import contextlib
import json
import os
import resource
import shutil
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Self

import psutil
from safetensors.torch import load_file, save_file
from torch.fx import GraphModule

import hasten.errors
from hasten import environments
from hasten.children import Child, follow_parent, readable
from hasten.errors import HastenError, reason
from hasten.graph.capture import has_dynamic_batch
from hasten.graph.shapes import trace_shapes
from hasten.graph.storage import load_graph, save_graph
from hasten.quantization.dynamic import check_dynamic
from hasten.quantization.fp8 import check_fp8
from hasten.recipe import Target, make_target, name_of, options_of
from hasten.task import Inputs, Task, calibration_inputs

COMPILE_SECONDS = 900.0


class CompileFailed(HastenError):
    """A compilation raised, crashed, or did not end in time."""


class Compiler:
    """Compiles in a child process, which starts with the first compilation; a context manager.

    Args:
        folder: Scratch space, made and removed again; `log.txt` in it collects what compilers print.
        limit_s: Longest time for one compilation.
        memory_bytes: Most memory that the child may allocate. None: what this machine, or its control group, has.
    """

    def __init__(self, folder: Path, limit_s: float = COMPILE_SECONDS, memory_bytes: int | None = None) -> None:
        self._folder, self._limit_s = folder, limit_s
        self._memory_bytes = usable_memory_bytes() if memory_bytes is None else memory_bytes
        self._child: Child | None = None

    def compile(self, target: Target, graph: GraphModule, task: Task, folder: Path) -> None:
        """What `target.compile(graph, task, folder)` does.

        The child's task has the example and calibration inputs of `task`, and nothing else of it.

        Raises:
            CompileFailed: The compiler crashed, hung, ran out of memory, or raised an error of its own.
            HastenError: What the target raised.
        """
        check_dynamic(graph, target)
        check_fp8(graph, target)
        handover = self._folder / "handover"
        shutil.rmtree(handover, ignore_errors=True)
        handover.mkdir(parents=True)
        try:
            message = _hand_over(target, graph, task, handover) | {"folder": str(folder.absolute())}
            answer = self._ask(name_of(target), message)
        finally:
            shutil.rmtree(handover, ignore_errors=True)
        if "error" in answer:
            kind = getattr(hasten.errors, answer["kind"], None)
            if isinstance(kind, type) and issubclass(kind, HastenError):
                raise kind(answer["error"])
            # An allocation that failed, or an interrupted native call, can leave anything behind.
            self._end()
            raise CompileFailed(answer["error"])

    def _ask(self, name: str, message: dict[str, Any]) -> dict[str, Any]:
        child = self._child = self._child or self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        line: bytes | None = b""
        try:
            with contextlib.suppress(OSError):
                child.stdin.write(json.dumps(message).encode() + b"\n")
                child.stdin.flush()
                line = child.stdout.readline() if readable(child.stdout, self._limit_s) else None
            if line:
                answer: dict[str, Any] = json.loads(line)
                return answer
        except BaseException:  # Ctrl-C: nobody must read the answer to this question
            self._kill()
            raise
        code = self._kill()
        if line is None:
            raise CompileFailed(f"{name}: compiling must end within {self._limit_s:.0f} s, but did not.")
        raise CompileFailed(f"{name}: the compiler's process ended with {code} ({self._last_words()}).")

    def _start(self) -> Child:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "log.txt").open("wb") as log:
            return Child([sys.executable, "-m", "hasten.search.compiler", str(self._memory_bytes)], log)

    def _kill(self) -> int:
        child, self._child = self._child, None
        assert child is not None
        child.kill_all()
        child.end(patience_s=0)
        return int(child.returncode)

    def _end(self) -> None:
        if self._child is not None:
            self._child.end(patience_s=2)
            self._child = None

    def _last_words(self) -> str:
        lines = (self._folder / "log.txt").read_text(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it printed nothing"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the child and remove the scratch space."""
        self._end()
        shutil.rmtree(self._folder, ignore_errors=True)


def usable_memory_bytes() -> int:
    """The machine's memory, or what the control group of this process leaves of it."""
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else ""
    return min(psutil.virtual_memory().total, int(text) if text.isdigit() else sys.maxsize)


def _hand_over(target: Target, graph: GraphModule, task: Task, handover: Path) -> dict[str, Any]:
    """Write graph, example and calibration inputs; returns what the child must know beside them."""
    options = options_of(target)
    save_graph(graph, handover)
    batches = [task.example]
    if samples := int(options.get("samples", 0)):
        # Targets take whole batches, so up to one more than the samples they ask for.
        spare = max(len(task.example[0]), int(options.get("batch", 0)))
        batches += islice(calibration_inputs(task, samples + spare), samples + spare)
    for index, batch in enumerate(batches):
        tensors = {str(n): x.detach().cpu().contiguous().clone() for n, x in enumerate(batch)}
        save_file(tensors, handover / f"batch_{index}.safetensors")
    return {
        "name": name_of(target),
        "options": options,
        "graph": str(handover.absolute()),
        "batches": len(batches),
        "dynamic": has_dynamic_batch(graph),
    }


def _compile(message: dict[str, Any]) -> None:
    handover = Path(message["graph"])
    graph = load_graph(handover)
    example, *calibration = (_inputs(handover / f"batch_{n}.safetensors") for n in range(message["batches"]))
    trace_shapes(graph, example, dynamic=message["dynamic"])
    task = Task(model=graph, example=example, holdout=[example[0]])
    if calibration:
        task = replace(task, calibration=calibration)
    make_target(message["name"], message["options"]).compile(graph, task, Path(message["folder"]))


def _inputs(path: Path) -> Inputs:
    tensors = load_file(path)
    return tuple(tensors[str(n)].clone() for n in range(len(tensors)))


def _serve(memory_bytes: int) -> None:
    """The child's loop: one JSON line in, one JSON line out, until the parent closes the pipe."""
    follow_parent()
    environments.keep_warm()
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    # Compilers print to standard output; keep the pipe for answers alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        answer: dict[str, Any] = {}
        try:
            _compile(json.loads(line))
        except Exception as error:
            answer = {"kind": type(error).__name__, "error": reason(error)}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
