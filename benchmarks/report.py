"""How long the report of a run of many trials takes to open in Chromium: from the navigation to the second frame after
the page's scripts are done, by the page's own clock; starting the browser is not in it.

    python benchmarks/report.py [TRIALS]

Writes `benchmarks/results/report.json`.
"""

import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "report"))

from run_folder import write_run

from hasten.machine import fingerprint
from hasten.report.html import write_report

RESULTS = Path(__file__).parent / "results" / "report.json"
TURNS = 7
SAY = """
requestAnimationFrame(() => requestAnimationFrame(() => console.log(`opened after ${performance.now()} ms`)));
"""


def main(trials: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        write_run(Path(scratch) / "run", trials)
        report = write_report(Path(scratch) / "run")
        opened = Path(scratch) / "opened.html"
        opened.write_text(report.read_text().replace("</body>", f"<script>{SAY}</script></body>"))
        opening = [opened_s(opened, Path(scratch) / "page.png") for _ in range(TURNS)]
        found = {
            "machine": fingerprint(),
            "trials": trials,
            "turns": TURNS,
            "bytes": report.stat().st_size,
            "open_s": {"median": statistics.median(opening), "least": min(opening), "most": max(opening)},
        }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["open_s"]))


def opened_s(page: Path, picture: Path) -> float:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("Chromium is not installed")
    said = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={picture}", "--enable-logging=stderr",
         page.as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    ).stderr  # fmt: skip
    found = re.search(r"opened after ([\d.]+) ms", said)
    if found is None:
        raise SystemExit(f"The page did not say when it had opened:\n{said}")
    return float(found[1]) / 1e3


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
