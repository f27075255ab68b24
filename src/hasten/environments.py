"""Interpreters of their own for stacks that do not fit beside PyTorch: made from pinned lists, spoken to over pipes.

A stack is a file `hasten/stacks/NAME.py` (what runs in the child) with a pinned list `NAME.txt` beside it. The parent
sees files and numbers only: one JSON line each way, arrays as `.npy` files, nothing pickled. The child sees no package
of the parent but hasten itself.
"""

import contextlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import IO, Any

import numpy as np

import hasten.errors
from hasten.children import Child
from hasten.errors import HastenError, InvalidInput, unknown
from hasten.recipe import Program, Target

_STACKS = Path(__file__).parent / "stacks"
# In a pinned list: what stands behind this line asks for versions that it does not need.
_ALONE = "# Without dependencies"
_CHILD = Path(__file__).parent / "stacks" / "_child.py"


# The process that was used last, if any; None: processes are not kept.
_warm: "list[Process] | None" = None


class StackFailed(HastenError):
    """A stack's own process raised, crashed, or could not be installed."""


def root() -> Path:
    """Where environments live: `$HASTEN_ENVS`, else `hasten/environments` in the user's cache folder."""
    if chosen := os.environ.get("HASTEN_ENVS"):
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "hasten" / "environments"


def names() -> list[str]:
    """Every stack that has a pinned list."""
    return sorted(path.stem for path in _STACKS.glob("*.txt"))


def requirements(name: str) -> str:
    """The pinned list of a stack, one requirement a line.

    Raises:
        InvalidInput: No such stack.
    """
    if name not in names():
        raise unknown("environment", name, names())
    return (_STACKS / f"{name}.txt").read_text()


def python_of(name: str) -> Path:
    """The interpreter of a stack, whether it exists or not."""
    return root() / name / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def missing(name: str) -> str:
    """Empty if the stack's environment is there and was made from the present pinned list, else how to make it."""
    marker = _marker(name)
    made_from = marker.read_text() if marker.is_file() else ""
    return "" if made_from == requirements(name) and python_of(name).exists() else f"hasten targets install {name}"


def install(name: str) -> Path:
    """Make a stack's environment from its pinned list, with pip's progress on standard error.

    Returns:
        The environment's folder.

    Raises:
        InvalidInput: No such stack.
        StackFailed: pip could not install it, or its tools do not run here; it then counts as not installed.
    """
    wanted = requirements(name)
    folder = root() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    _marker(name).unlink(missing_ok=True)
    venv.create(folder, clear=True, with_pip=True)
    pip = [str(python_of(name)), "-m", "pip", "install", "--disable-pip-version-check"]
    whole, _, alone = wanted.partition(_ALONE)
    parts = [([], whole.split("\n")), (["--no-deps"], alone.split("\n")[1:])]
    calls = [[*pip, *options, *lines] for options, part in parts if (lines := [line for line in part if line])]
    if any(subprocess.run(call, stdout=sys.stderr, check=False).returncode for call in calls):
        raise StackFailed(f"pip must be able to install {name} into {folder}, but failed. Its message stands above.")
    # Written last: an environment whose installation broke off is not taken for a whole one.
    _marker(name).write_text(wanted)
    if "\ndef prepare(" in (_STACKS / f"{name}.py").read_text():
        # What its tools do once, at their first run, is not to be done in the middle of a search.
        try:
            with Process(name) as process:
                process.call("prepare")
        except BaseException:
            _marker(name).unlink()
            raise
    return folder


def call(stack: str, function: str, **values: Any) -> Any:
    """Call `function` of `hasten.stacks.STACK` in the stack's own process.

    Args:
        stack: Name of an installed stack.
        function: What to call.
        values: Plain values and paths.

    Returns:
        What the function returned, as JSON carries it.

    Raises:
        HastenError: What the function raised, by its own kind if it is one of hasten's, else `StackFailed`.
    """
    if _warm is None:
        with Process(stack) as process:
            return process.call(function, **values)
    if not any(process.stack == stack and process.runs for process in _warm):
        while _warm:
            _warm.pop().close()
        _warm.append(Process(stack))
    return _warm[0].call(function, **values)


def keep_warm() -> None:
    """From now on the process that `call` starts waits for the next call to its stack, until another is called.

    A compiler's imports take seconds, which a search would pay for every trial.
    """
    global _warm
    _warm = [] if _warm is None else _warm


class Process:
    """A stack's process; a context manager.

    Raises:
        InvalidInput: The stack is not installed.
    """

    def __init__(self, stack: str) -> None:
        if need := missing(stack):
            raise InvalidInput(f"The environment {stack} must be installed, but is not. Run: {need}")
        self.stack = stack
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        # -P: the folder of the script must not shadow packages of the environment.
        self._process = Child([str(python_of(stack)), "-P", str(_CHILD), stack], self._log, environment)

    def call(self, function: str, **values: Any) -> Any:
        """Call a function of the stack; see `hasten.environments.call`."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        message = {"function": function, "values": {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}}
        line = b""
        with contextlib.suppress(OSError):
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if not line:
            raise StackFailed(f"{self.stack}: its process ended with {process.wait()} ({self._last_words()}).")
        answer = json.loads(line)
        if "error" in answer:
            kind = getattr(hasten.errors, answer["kind"], None)
            if isinstance(kind, type) and issubclass(kind, HastenError):
                raise kind(answer["error"])
            raise StackFailed(f"{self.stack}: {answer['kind']}: {answer['error']}")
        return answer["result"]

    @property
    def runs(self) -> bool:
        """Whether it takes further calls."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        self._process.end(patience_s=5)
        self._log.close()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # A program that is dropped takes its process along.
        if hasattr(self, "_process") and self._process.poll() is None:
            self.close()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it printed nothing"


def load(stack: str, folder: Path, **values: Any) -> Program:
    """The program that `hasten.stacks.STACK.load(folder, **values)` gives, as a proxy to the stack's process.

    Every call goes through files, which costs about a millisecond: right for what is simulated, not for timing.
    """
    process = Process(stack)
    process.call("load", folder=folder.absolute(), **values)

    def program(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        with tempfile.TemporaryDirectory() as scratch:
            for index, x in enumerate(inputs):
                np.save(Path(scratch) / f"input_{index}.npy", x, allow_pickle=False)
            count = process.call("run_program", folder=scratch, inputs=len(inputs))
            return tuple(np.load(Path(scratch) / f"output_{i}.npy", allow_pickle=False) for i in range(count))

    return program


def here(stack: str, package: str) -> Any:
    """The module of a stack for use in this process if `package` can be imported here, else None."""
    return importlib.import_module(f"hasten.stacks.{stack}") if importlib.util.find_spec(package) else None


def command(target: Target, module: str) -> list[str]:
    """How to start `python -m module` where `target` runs without a proxy: here, or in its stack's interpreter.

    A target names its `stack` and the `package` that must be importable for its program to run in one process.
    """
    stack, package = getattr(target, "stack", ""), getattr(target, "package", "")
    if not package or importlib.util.find_spec(package) or missing(stack):
        return [sys.executable, "-m", module]
    return [str(python_of(stack)), "-P", str(_CHILD), "-m", module]


def _marker(name: str) -> Path:
    return root() / name / f"hasten-{name}.txt"
