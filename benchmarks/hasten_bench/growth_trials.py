"""The search for a given time, in one process: `python -m hasten_bench.growth_trials MINUTES`.

Prints a JSON line with the number of trials it came to, its seconds and its peak memory (the trials' programs run in
processes of their own and are not counted in it).
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import hasten
from hasten_bench.growth_stages import peak_bytes
from hasten_bench.material import example_module


def main() -> int:
    """Search a small network of handwritten digits until the deadline."""
    task = example_module("digits").task()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        found = hasten.run(task, hasten.Budget(minutes=float(sys.argv[1])), out=Path(folder) / "run")
        line = {"stage": "search", "trials": len(found.trials), "seconds": time.perf_counter() - started}
    print(json.dumps(line | {"peak_bytes": peak_bytes()}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
