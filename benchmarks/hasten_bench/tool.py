"""Ask a peer: run one of its variants in its own environment, on the handed-over files, within a time limit."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from hasten import environments as stacks
from hasten.machine import usable_cores
from hasten_bench import environments, material
from hasten_bench.handover import Handover
from hasten_bench.registry import Peer

_RUNNER = Path(__file__).with_name("run_peer.py")
_HAD_ITS_TIME = 0.7
_PATIENCE = 6


@dataclass(frozen=True)
class Answer:
    """What a peer handed back.

    Attributes:
        peer, variant: Who was asked for what.
        folder: Where the program lies.
        made_from: Changes when anything that the program is made from changes.
        made: When and at which commit the tool ran, its limits, and the load of the machine.
        program: `target` and `options` that load it, and its `folder` under `Answer.folder`.
        failure: Why there is no program; empty if there is one.
        tool_s: Time the tool took, imports included.
        tool_cpu_s: Processor time of it and its children; on a busy machine the better measure.
        tool_peak_bytes: Peak resident memory of the tool's process.
        lines: Lines of code a user writes.
        packages: Versions in the peer's environment.
    """

    peer: str
    variant: str
    folder: Path
    made_from: str = ""
    made: dict[str, Any] = field(default_factory=dict)
    program: dict[str, Any] = field(default_factory=dict)
    failure: str = ""
    tool_s: float = 0.0
    tool_cpu_s: float = 0.0
    tool_peak_bytes: int = 0
    lines: int = 0
    packages: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """`peer/variant`."""
        return f"{self.peer}/{self.variant}"

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"folder": str(self.folder)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(**fields | {"folder": Path(fields["folder"])})


def ask(peer: Peer, variant: str, handover: Handover, home: Path, *, minutes: float, limit_s: float) -> Answer:
    """Run a variant; whatever goes wrong is in the answer's `failure`.

    Args:
        peer: Whom.
        variant: For what.
        handover: The work.
        home: New folder for the job; emptied first.
        minutes: What the peer may spend on searching or training.
        limit_s: When its process is ended; later where others keep it from running.
    """
    shutil.rmtree(home, ignore_errors=True)
    out = home / "out"
    out.mkdir(parents=True)
    try:
        python = environments.python_for(peer.name, peer.requirements)
    except environments.InstallFailed as error:
        return Answer(peer.name, variant, out, failure=f"cannot be installed: {error}")
    job = {"workload": str(handover.folder), "out": str(out), "threads": usable_cores(), "minutes": minutes}
    (home / "job.json").write_text(json.dumps(job))
    failure = _run([str(python), "-P", str(_RUNNER), str(peer.path), variant, str(home / "job.json")], home, limit_s)
    result = json.loads((home / "result.json").read_text()) if (home / "result.json").exists() else {}
    return Answer(
        peer.name,
        variant,
        out,
        program=result.get("program") or {},
        failure=result.get("failure", "") or ("" if result else failure),
        tool_s=result.get("tool_s", 0.0),
        tool_cpu_s=result.get("tool_cpu_s", 0.0),
        tool_peak_bytes=result.get("tool_peak_bytes", 0),
        lines=result.get("lines", 0),
        packages=environments.frozen(python) if peer.requirements else [],
    )


def _run(command: list[str], home: Path, limit_s: float) -> str:
    """Run to the end or to the limit; returns what to say if no result was written."""
    env = os.environ | {"OMP_NUM_THREADS": str(usable_cores()), "XDG_CACHE_HOME": str(_caches())}
    # hasten's own stacks are installed, not cached: its search sees those that the user has.
    env |= {"HASTEN_ENVS": str(stacks.root())}
    log = home / "log.txt"
    started = time.monotonic()
    with log.open("w") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink, cwd=home, env=env, start_new_session=True)
        try:
            code = _wait(process, limit_s)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return f"not finished after {limit_s:.0f} s"
    last = (log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"])[-1]
    return f"its process ended with {code} after {time.monotonic() - started:.0f} s: {last[:200]}"


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> int:
    """The exit code; raises `TimeoutExpired` when the limit is reached.

    A tool that others kept from running gets more: it has had its time once it has used most of it on a core.
    """
    started, used = time.monotonic(), 0.0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(min(2.0, limit_s / 4))
        waited, used = time.monotonic() - started, max(used, _cpu_s(process.pid))
        if waited > limit_s and (used > _HAD_ITS_TIME * limit_s or waited > _PATIENCE * limit_s):
            raise subprocess.TimeoutExpired(process.args, limit_s)


def _cpu_s(pid: int) -> float:
    """Processor time of a process and all below it."""
    total = 0.0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        for each in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = each.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


def _caches() -> Path:
    """What tools cache stays out of the user's home."""
    folder = material.cache() / "tools"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
