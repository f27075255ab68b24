"""A process of its own for every profile and every probe, so that no runtime's idle threads disturb another's.

`ask` is the parent's side, running this file is the child's: one JSON document in, one out; arrays travel as `.npy`.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from hasten.diagnosis.profilers.record import Profile
from hasten.errors import HastenError
from hasten.recipe import Target, make_target, name_of, options_of

_LIMIT_SECONDS = 300


class ProbeFailed(HastenError):
    """A profile or a probe raised, crashed, or did not answer in time."""


def has_profiler(target: Target) -> bool:
    """Whether the nodes of this target's programs can be timed."""
    return importlib.util.find_spec(f"hasten.diagnosis.profilers.{name_of(target)}") is not None


def profile(target: Target, folder: Path, inputs: list[np.ndarray], seconds: float) -> Profile:
    """Profile what `target` compiled into `folder`, in a process of its own.

    Raises:
        ProbeFailed: The program cannot be loaded or run.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for index, x in enumerate(inputs):
            np.save(Path(scratch) / f"{index}.npy", np.ascontiguousarray(x), allow_pickle=False)
        message = {
            "command": "profile",
            "target": name_of(target),
            "options": options_of(target),
            "folder": str(folder),
            "inputs": [str(Path(scratch) / f"{index}.npy") for index in range(len(inputs))],
            "seconds": seconds,
        }
        return Profile.from_json(ask(message))


def ask(message: dict[str, Any]) -> Any:
    """The child's answer to one message.

    Raises:
        ProbeFailed: It raised, crashed, or did not answer in time.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "hasten.diagnosis.child"],
            input=json.dumps(message),
            capture_output=True,
            text=True,
            timeout=_LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ProbeFailed(f"{message['command']} did not answer within {_LIMIT_SECONDS} s.") from None
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        words = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1][:300]
        raise ProbeFailed(f"{message['command']} {message.get('target', '')} failed: {words}")
    return json.loads(lines[-1])


def _answer(message: dict[str, Any]) -> Any:
    if message["command"] == "profile":
        part = importlib.import_module(f"hasten.diagnosis.profilers.{message['target']}")
        inputs = [np.load(path, allow_pickle=False) for path in message["inputs"]]
        target = make_target(message["target"], message["options"])
        made: Profile = part.profile(target, Path(message["folder"]), inputs, message["seconds"])
        return made.to_json()
    if message["command"] == "probes":
        from hasten.diagnosis.probes import time_probes

        return time_probes(message["runtime"], [Path(p) for p in message["paths"]], message["precision"])
    from hasten.diagnosis.torch_probes import measure

    return measure(message)


def _serve() -> None:
    # Runtimes print to standard output; keep it for the answer alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answers.write(json.dumps(_answer(json.loads(sys.stdin.read()))) + "\n")
    answers.flush()


if __name__ == "__main__":
    _serve()
