"""kill -9 at several moments, then --resume: nothing that was finished is done again, and the run ends as one run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# The command with a small field of candidates.
SMALL = """
from hasten.search import candidates, heat
heat._ENTRANTS, candidates._MOST_PROBES = (2, 1), 6
from hasten.cli import main
main()
"""
ARGUMENTS = ["--max-drop", "2%", "--targets", "onnxruntime", "--objective", "size", "--resume", "--quiet"]


def _start(out: Path, *more: str) -> subprocess.Popen[str]:
    task = str(ROOT / "examples" / "digits.py")
    command = [sys.executable, "-c", SMALL, "run", task, "--out", str(out), *ARGUMENTS, *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, text=True, stdout=-1, stderr=-1, env=environment, start_new_session=True)


def _events(out: Path) -> list[dict[str, object]]:
    path = out / "journal.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def _kill_when(out: Path, reached: Callable[[], bool]) -> None:
    process = _start(out)
    while not reached():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def _count(out: Path, kind: str) -> int:
    return sum(e["event"] == kind for e in _events(out))


MOMENTS: dict[str, Callable[[Path], Callable[[], bool]]] = {
    "in the first trials": lambda out: lambda: _count(out, "trial") >= 2,
    "while probing": lambda out: lambda: _count(out, "probe") >= 2,
    "in a training": lambda out: lambda: (out / "graphs" / "in_flight" / "training.pt").exists(),
    "before the finals": lambda out: lambda: _count(out, "finalists") >= 1,
}


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param(["in a training"], id="one kill in a training"),
        pytest.param(list(MOMENTS), id="a kill at every moment", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, moments: list[str]) -> None:
    out = tmp_path / "run"
    before: list[dict[str, object]] = []
    for moment in moments:
        _kill_when(out, MOMENTS[moment](out))
        events = _events(out)
        assert events[: len(before)] == before
        before = events
    if moments == ["in a training"]:
        with (out / "journal.jsonl").open("a") as file:
            file.write('{"event": "trial", "torn')
    done = _start(out)
    output, errors = done.communicate(timeout=600)
    assert done.returncode == 0, errors
    assert "passed" in output
    events = _events(out)
    assert events[: len(before)] == before
    keys = Counter((e["event"], e["key"]) for e in events)
    assert max(keys.values()) == 1
    numbers = [e["number"] for e in events if e["event"] == "trial"]
    assert numbers == list(range(len(numbers)))
    assert (out / "best.hasten" / "certificate.json").exists()


def test_other_conditions_are_refused_by_name(tmp_path: Path) -> None:
    out = tmp_path / "run"
    _kill_when(out, lambda: _count(out, "trial") >= 1)
    refused = _start(out, "--seed", "1")
    _, errors = refused.communicate(timeout=300)
    assert refused.returncode == 2
    assert "`seed` must be what the run to resume began with, 0, but is 1" in errors
