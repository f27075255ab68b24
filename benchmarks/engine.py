"""The engine and the server against the runtime alone and against other servers; rows are kept in one JSON file.

    python benchmarks/engine.py --only throughput,small [--repeats 11] [--seconds 0.5]
    python benchmarks/engine.py --page > docs/engine.md

Every row can be run by itself, in at most a few minutes, on a machine where nothing else runs. Ratios are medians over
interleaved repeats, the smallest and largest repeat beside them. Latency under overload is open loop. CPU time is that
of the server's whole process tree. The load generator runs on the same cores as the server.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine_bench import data, rivals, scheduling, serving, soak
from engine_bench.models import LARGE, SMALL, convolutional
from engine_bench.page import page
from hasten.machine import fingerprint, usable_cores

RESULTS = Path(__file__).parent / "results" / "engine.json"

Row = Callable[[Path, int, float], Any]


def _small(scratch: Path) -> Path:
    return convolutional(scratch, "small", **SMALL)


def _large(scratch: Path) -> Path:
    return convolutional(scratch, "large", **LARGE)


def _throughput(scratch: Path, repeats: int, seconds: float) -> Any:
    return {
        "large": scheduling.engine_against_runtime(_large(scratch), 4, repeats, seconds),
        "small": scheduling.engine_against_runtime(_small(scratch), 8, repeats, seconds),
    }


def _makespan(scratch: Path, repeats: int, seconds: float) -> Any:
    del seconds
    large = _large(scratch)
    return {
        f"real 4:1, {rows} rows": scheduling.repeated_device(large, 4, rows, repeats) for rows in (400, 48)
    } | scheduling.simulated_devices(repeats)


def _splitting(scratch: Path, repeats: int, seconds: float) -> Any:
    del scratch, repeats, seconds
    from engine_bench import splitting  # needs torch

    return splitting.beds()


ROWS: dict[str, Row] = {
    "throughput": _throughput,
    "small": lambda scratch, repeats, seconds: serving.served(_small(scratch), repeats, seconds),
    "large": lambda scratch, repeats, seconds: serving.served(_large(scratch), repeats, seconds),
    "overload": lambda scratch, repeats, seconds: serving.overload(_large(scratch), repeats, seconds),
    "makespan": _makespan,
    "jpeg": lambda scratch, repeats, seconds: data.jpeg(scratch, repeats, "opencv"),
    "fused": lambda scratch, repeats, seconds: data.fused(scratch, repeats, seconds),
    "splitting": _splitting,
    "raydata": lambda scratch, repeats, seconds: data.on_ray(scratch, repeats),
    "soak": lambda scratch, repeats, seconds: soak.soak(_small(scratch), seconds),
    **{
        name: (lambda scratch, repeats, seconds, name=name: rivals.measured(name, _small(scratch), repeats, seconds))
        for name in rivals.RIVALS
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(ROWS), help=f"rows, comma-separated, of: {', '.join(ROWS)}")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.5, help="of every measurement; of soak: minutes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--note", default="", help="what a reader must know about the conditions, such as a busy machine"
    )
    parser.add_argument("--page", action="store_true", help="print the page of what was measured, and measure nothing")
    arguments = parser.parse_args()
    if arguments.page:
        print(page(json.loads(arguments.out.read_text())), end="")
        return
    for name in arguments.only.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            found = ROWS[name](Path(scratch), arguments.repeats, arguments.seconds)
        print(name, json.dumps(found, indent=2), flush=True)
        keep(arguments.out, name, found, arguments.note)


def keep(path: Path, name: str, found: Any, note: str) -> None:
    """Put a row into the results file, with the machine it was measured on."""
    results = json.loads(path.read_text()) if path.exists() else {}
    results["machine"] = fingerprint() | {"usable_cores": usable_cores()}
    results.setdefault("rows", {})[name] = {"found": found, "note": note}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
