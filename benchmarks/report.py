"""How long Chromium takes to open the report of a run of many trials, from the command to a page that is drawn.

    python benchmarks/report.py [TRIALS]

Starting Chromium is timed too, on an empty page in turns, and taken off. Writes `benchmarks/results/report.json`.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "report"))

from run_folder import write_run

from hasten.machine import fingerprint
from hasten.report.html import write_report

RESULTS = Path(__file__).parent / "results" / "report.json"
TURNS = 7


def main(trials: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        write_run(Path(scratch) / "run", trials)
        report = write_report(Path(scratch) / "run")
        empty = Path(scratch) / "empty.html"
        empty.write_text("<!doctype html><title>empty</title>")
        times: dict[str, list[float]] = {"report": [], "empty": []}
        for _ in range(TURNS):
            for name, path in (("report", report), ("empty", empty)):
                times[name].append(opened_s(path))
        opening = [a - b for a, b in zip(times["report"], times["empty"], strict=True)]
        found = {
            "machine": fingerprint(),
            "trials": trials,
            "turns": TURNS,
            "bytes": report.stat().st_size,
            "open_s": {"median": statistics.median(opening), "least": min(opening), "most": max(opening)},
        }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["open_s"]))


def opened_s(page: Path) -> float:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("Chromium is not installed")
    start = time.perf_counter()
    subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()],
        capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    return time.perf_counter() - start


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
