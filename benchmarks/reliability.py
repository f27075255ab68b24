"""Kill searches at random moments and see what is left of them; the page docs/reliability.md is rendered from the result.

    python benchmarks/reliability.py kills --count 100     # minutes
    python benchmarks/reliability.py faults                # disk full, read-only, out of memory, crash, hang, bad data
    python benchmarks/reliability.py --page > docs/reliability.md

Every check is made on the processes and files themselves. A check that fails is recorded with what was seen.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from hasten.artifact import verify
from hasten.errors import HastenError
from hasten.machine import fingerprint

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "reliability.json"
TASK = str(ROOT / "examples" / "digits.py")


def search(out: Path, *arguments: str, **environment: str) -> "subprocess.Popen[bytes]":
    """A search over the digits in a process group of its own."""
    command = [sys.executable, "-m", "hasten.cli", "run", TASK, "--max-drop", "2%", "--targets", "onnxruntime,openvino"]
    return subprocess.Popen(
        [*command, "--out", str(out), "--resume", "--quiet", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, **environment},
    )


def orphans(session: int) -> list[str]:
    """Processes that still belong to a search's session."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            if os.getsid(process.pid) == session and process.pid != session:
                found.append(" ".join(process.info["cmdline"] or [])[:200])
        except (ProcessLookupError, psutil.Error):
            continue
    return found


def journal_of(folder: Path) -> tuple[list[dict[str, Any]], bool]:
    """Whole events, and whether every line but the last can be read."""
    path = folder / "journal.jsonl"
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    events, sound = [], True
    for index, line in enumerate(x for x in lines if x):
        try:
            events.append(json.loads(line))
        except ValueError:
            sound = sound and index == len(lines) - 1
    return events, sound


def broken_artifacts(folder: Path) -> list[str]:
    """Artifacts that can be seen in the folder and do not verify."""
    broken = []
    for path in folder.glob("*.hasten"):
        try:
            verify(path)
        except HastenError as error:
            broken.append(f"{path.name}: {error}")
    return broken


def kills(count: int, seed: int) -> dict[str, Any]:
    """Kill a search `count` times in all, resume it each time, and begin another where one finished."""
    chance = random.Random(seed)
    problems: list[str] = []
    done, finished, redone, before = 0, 0, 0, 0
    scratch = Path(tempfile.mkdtemp())
    folder, measured = scratch / "run-0", set()
    while done < count:
        process = search(folder, "--seed", str(finished))
        try:
            # Starting takes seconds; a search as short as this one lives for about a minute.
            process.wait(timeout=chance.uniform(3, 40))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGSTOP) if False else process.kill()
            process.wait()
            done += 1
            time.sleep(3)
            if left := orphans(process.pid):
                problems.append(f"kill {done}: still running: {left}")
                os.killpg(process.pid, signal.SIGKILL)
        events, sound = journal_of(folder)
        if not sound:
            problems.append(f"kill {done}: the journal cannot be read")
        problems += [f"kill {done}: {x}" for x in broken_artifacts(folder)]
        keys = [(e["event"], e["key"]) for e in events if e["event"] == "trial"]
        redone += len(keys) - len(set(keys))
        if lost := measured - set(keys):
            problems.append(f"kill {done}: finished trials lost: {sorted(lost)}")
        measured = set(keys)
        if process.returncode in (0, 1) or len(events) < before:
            finished += 1
            folder, measured = scratch / f"run-{finished}", set()
        elif process.returncode not in (-signal.SIGKILL, 0, 1):
            error = process.stderr.read().decode()[-300:] if process.stderr else ""
            problems.append(f"kill {done}: exit code {process.returncode}: {error}")
            finished += 1
            folder, measured = scratch / f"run-{finished}", set()
        before = len(events) if process.returncode == -signal.SIGKILL else 0
        print(f"{done} kills, {finished} searches finished, {len(problems)} problems", file=sys.stderr)
    return {"kills": done, "finished": finished, "trials_done_twice": redone, "problems": problems}
