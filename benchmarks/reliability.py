"""Kill searches at random moments and see what is left of them; run the fault and fuzz tests; render the page.

    python benchmarks/reliability.py kills --count 100         # about half an hour on two idle cores
    HASTEN_FUZZ=20000 python benchmarks/reliability.py tests   # tests/hardening, and what became of every test
    python benchmarks/reliability.py networks --count 1000     # random networks through everything; nightly
    python benchmarks/reliability.py coverage REPORT.json      # keep what `coverage json` wrote
    python benchmarks/mutants.py                               # mutation testing; results of its own
    python benchmarks/supply.py                                # components, licences, known holes
    python benchmarks/deployed.py PYTHON...                    # an artifact in other interpreters, without PyTorch
    python benchmarks/reliability.py page > docs/reliability.md

Every check is made on the processes and files themselves. A check that fails is recorded with what was seen.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from hasten.artifact import verify
from hasten.errors import HastenError
from hasten.machine import fingerprint
from reliability_page import page

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "reliability.json"
TASK = str(ROOT / "examples" / "digits.py")
MARK = "HASTEN_RELIABILITY"  # every process of a search has it in its environment
PATIENCE_S = 30.0
FIFTY = 50


@dataclass
class Kills:
    """What was seen after every kill."""

    kills: int = 0
    by_phase: dict[str, int] = field(default_factory=dict)
    searches_finished: int = 0
    trials_kept: int = 0
    trials_done_twice: int = 0
    children_at_kill: int = 0
    slowest_end_s: float = 0.0
    artifacts_checked: int = 0
    problems: list[str] = field(default_factory=list)


def search(out: Path, seed: int) -> "subprocess.Popen[bytes]":
    """A search over the digits, new or resumed."""
    command = [sys.executable, "-m", "hasten.cli", "run", TASK, "--max-drop", "2%", "--targets", "onnxruntime,openvino"]
    log = (out.parent / f"{out.name}.log").open("wb")
    return subprocess.Popen(
        [*command, "--out", str(out), "--seed", str(seed), "--resume", "--quiet"],
        stdout=log,
        stderr=log,
        # Threads that spin while they wait take processor time for nothing, most of all on a busy machine.
        env={**os.environ, MARK: uuid.uuid4().hex, "GOMP_SPINCOUNT": "0", "OMP_WAIT_POLICY": "passive"},
    )


def marked(mark: str) -> list[psutil.Process]:
    """Processes that run with a mark, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def used_s(search: psutil.Process) -> float:
    """Processor time of a search and its children, those that have ended included."""
    found = [process.cpu_times() for process in (search, *search.children(recursive=True))]
    return float(sum(x.user + x.system + x.children_user + x.children_system for x in found))


def outlives(process: "subprocess.Popen[bytes]", processor_s: float) -> bool:
    """Whether a search still runs after so much processor time, which does not depend on what else the machine does."""
    while process.poll() is None:
        try:
            if used_s(psutil.Process(process.pid)) >= processor_s:
                return True
        except psutil.Error:  # it ended in between
            pass
        time.sleep(0.05)
    return False


def kill(process: "subprocess.Popen[bytes]", seen: Kills) -> None:
    """Kill a search alone and wait for the rest to end by itself."""
    mark = psutil.Process(process.pid).environ()[MARK]
    seen.children_at_kill += len(marked(mark)) - 1
    process.kill()
    process.wait()
    waited_s, last = 0.0, time.monotonic()
    while (left := marked(mark)) and waited_s < PATIENCE_S:
        time.sleep(0.05)
        # Where everything here is stopped for a while, the orphans are too: such a gap is not waiting.
        waited_s, last = waited_s + min(time.monotonic() - last, 1.0), time.monotonic()
    seen.slowest_end_s = max(seen.slowest_end_s, round(waited_s, 2))
    for orphan in left:
        seen.problems.append(f"kill {seen.kills}: still runs: {' '.join(orphan.cmdline())[:200]}")
        orphan.kill()


def events_of(folder: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Whole events of the journal; a line before the last that cannot be read is a problem."""
    path = folder / "journal.jsonl"
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    events = []
    for index, line in enumerate(lines):
        try:
            events += [json.loads(line)] if line else []
        except ValueError:
            if index < len(lines) - 1:
                problems.append(f"{path.name}: line {index + 1} cannot be read")
    return events


def check(folder: Path, kept: set[str], seen: Kills) -> tuple[set[str], str]:
    """Look at what is on disk; returns the finished trials, and the last event on record."""
    problems: list[str] = []
    events = events_of(folder, problems)
    keys = [e["key"] for e in events if e["event"] == "trial"]
    seen.trials_done_twice += len(keys) - len(set(keys))
    problems += [f"a finished trial is lost: {key}" for key in kept - set(keys)]
    for path in folder.glob("*.hasten"):
        seen.artifacts_checked += 1
        try:
            verify(path)
        except HastenError as error:
            problems.append(f"{path.name}: {error}")
    seen.problems += [f"kill {seen.kills}: {x}" for x in problems]
    return set(keys), events[-1]["event"] if events else "before the first event"


def kills(count: int, seed: int, longest_s: float) -> None:
    """Kill searches `count` times, resume each, begin another where one finished.

    What was seen is added to what is on record from other seeds; the same seed again takes the record's place.
    """
    chance, seen = random.Random(seed), Kills()
    before_this = json.loads(RESULTS.read_text()).get("kills", {}) if RESULTS.exists() else {}
    scratch = Path(tempfile.mkdtemp(prefix="hasten-reliability-"))
    kept: set[str] = set()
    while seen.kills < count:
        folder = scratch / f"run-{seen.searches_finished}"
        process = search(folder, seen.searches_finished)
        if outlives(process, chance.uniform(1, longest_s)):
            seen.kills += 1
            kill(process, seen)
        before = kept
        kept, last = check(folder, before, seen)
        seen.trials_kept += len(before & kept)
        if process.returncode == -9:
            seen.by_phase[last] = seen.by_phase.get(last, 0) + 1
        else:
            if process.returncode or last != "end":
                words = (scratch / f"{folder.name}.log").read_text()[-300:]
                seen.problems.append(f"kill {seen.kills}: ended with {process.returncode} after {last!r}: {words}")
            seen.searches_finished, kept = seen.searches_finished + 1, set()
        settings = {"seeds": [seed], "longest_s": longest_s, "device": fingerprint()}
        store("kills", added(before_this, asdict(seen) | settings))
        print(f"{seen.kills} kills, {seen.searches_finished} finished, {len(seen.problems)} problems", file=sys.stderr)


def added(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The sum of two records of kills, unless both are of one seed."""
    if not before or set(before["seeds"]) & set(now["seeds"]):
        return now
    made = dict(now)
    for name in ("kills", "searches_finished", "trials_kept", "trials_done_twice", "children_at_kill",
                 "artifacts_checked", "problems", "seeds"):  # fmt: skip
        made[name] = before[name] + now[name]
    for name in ("slowest_end_s", "longest_s"):
        made[name] = max(before[name], now[name])
    phases = {*before["by_phase"], *now["by_phase"]}
    made["by_phase"] = {name: before["by_phase"].get(name, 0) + now["by_phase"].get(name, 0) for name in sorted(phases)}
    return made


def tests() -> None:
    """Run tests/hardening and keep what became of every test."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-m", "pytest", str(ROOT / "tests" / "hardening"), f"--junitxml={report}"]
        subprocess.run(command, cwd=ROOT, check=False)
        found = {}
        for case in ElementTree.parse(report).iter("testcase"):
            ways = {child.tag for child in case} & {"failure", "error", "skipped"}
            name = f"{str(case.get('classname')).split('.')[-1]}::{case.get('name')}"
            found[name] = ways.pop() if ways else "passed"
    store("tests", {"outcomes": found, "examples": int(os.environ.get("HASTEN_FUZZ", "150")), "device": fingerprint()})


def networks(count: int, seed: int) -> None:
    """Run the random networks, so many of them from a seed on, and keep after every fifty whether all agreed.

    A failing fifty is kept by its seed, with what the test said.
    """
    name = "tests/hardening/test_random_networks.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name]
    began, seen, failed = time.monotonic(), 0, dict[str, str]()
    for at in range(seed, seed + -(-count // FIFTY)):
        drawn = {"HASTEN_NETWORKS": str(FIFTY), "HASTEN_SEED": str(at)}
        done = subprocess.run(command, cwd=ROOT, env=os.environ | drawn, capture_output=True, text=True, check=False)
        seen += FIFTY
        if done.returncode != 0:
            failed[str(at)] = done.stdout[-3000:]
        seconds = round(time.monotonic() - began)
        store("networks", {"count": seen, "seed": seed, "failed": failed, "seconds": seconds, "device": fingerprint()})
        print(f"{seen} networks, {len(failed)} fifties with one that failed, {seconds} s", file=sys.stderr)


def coverage(report: Path) -> None:
    """Keep the totals of a report of `coverage json`, and the files least covered."""
    found = json.loads(report.read_text())
    files = {name: x["summary"]["percent_covered"] for name, x in found["files"].items()}
    least = dict(sorted(files.items(), key=lambda item: item[1])[:12])
    store("coverage", {"lines": found["totals"]["num_statements"], "percent": found["totals"]["percent_covered"],
                       "least": least, "files": len(files)})  # fmt: skip


def store(part: str, value: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Put one part into the results, beside the others."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    scratch = RESULTS.with_suffix(".part")
    scratch.write_text(json.dumps(results | {part: value}, indent=1) + "\n")
    scratch.replace(RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("kills", "tests", "networks", "coverage", "page"))
    parser.add_argument("report", type=Path, nargs="?", help="for `coverage`")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest-s", type=float, default=40.0, help="of processor time")
    arguments = parser.parse_args()
    if arguments.part == "kills":
        kills(arguments.count, arguments.seed, arguments.longest_s)
    elif arguments.part == "tests":
        tests()
    elif arguments.part == "networks":
        networks(arguments.count, arguments.seed)
    elif arguments.part == "coverage":
        coverage(arguments.report)
    else:
        print(page(json.loads(RESULTS.read_text())), end="")


if __name__ == "__main__":
    main()
