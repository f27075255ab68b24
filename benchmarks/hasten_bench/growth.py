"""How the cost of each stage of hasten grows: with the network, with the calibration set, with the number of trials.

Each size runs in a process of its own (`growth_stages.py`, `growth_trials.py`), which measures time and peak memory
stage by stage; what it measured is kept, so that the sizes can be run one by one. The slope of log cost against log
size is the exponent: 1 is linear. A network that fails at a size keeps its point with the reason.

Time is processor time, which a busy machine changes little; for the search, whose programs run elsewhere, wall time.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from hasten_bench import results
from hasten_bench.material import cache

FAMILIES = ("cnn", "transformer")
SIZES = (1e6, 3e6, 1e7, 3e7, 1e8, 3e8, 1e9)
ROWS = 32
SAMPLES = (16, 64, 256, 1024)
SAMPLES_PARAMETERS = 1e6
TRIAL_MINUTES = (0.5, 1.0, 2.0, 4.0)
LIMIT_S = 1800


@dataclass(frozen=True)
class Measurement:
    """One process: `family` at a size along an axis."""

    family: str
    axis: str
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the file that keeps it."""
        return "-".join((self.family, self.axis, *self.arguments))


def measurements(axis: str, largest: float) -> list[Measurement]:
    """What is to be measured, the smallest first.

    Args:
        axis: "parameters", "samples", "trials" or "all".
        largest: Largest number of parameters.
    """
    sizes = [size for size in SIZES if size <= largest * 1.001]
    found = [Measurement(f, "parameters", (f, str(int(size)), str(ROWS))) for size in sizes for f in FAMILIES]
    found += [Measurement("cnn", "samples", ("cnn", str(int(SAMPLES_PARAMETERS)), str(n))) for n in SAMPLES]
    found += [Measurement("search", "trials", (str(minutes),)) for minutes in TRIAL_MINUTES]
    return [m for m in found if axis in ("all", m.axis)]


def run(axis: str, largest: float, say: Callable[[str], None], fresh: bool = False) -> dict[str, Any]:
    """The growth document: every kept point, and slopes.

    Args:
        axis: What to measure now: "parameters", "samples", "trials" or "all".
        largest: Largest number of parameters to measure now.
        say: Receives one line per process.
        fresh: Measure again what is kept.
    """
    folder = cache() / "growth"
    for measurement in measurements(axis, largest):
        path = folder / f"{measurement.name}.json"
        if fresh or not path.exists():
            results.write({"points": _points(measurement, say)}, path)
    kept = [folder / f"{m.name}.json" for m in measurements("all", max(SIZES))]
    points = [point for path in kept if path.exists() for point in json.loads(path.read_text())["points"]]
    return {"points": points, "slopes": slopes(points)}


def slopes(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Exponents of time and memory for every family, axis and stage with at least three sizes, with 95% intervals."""
    keys = list(dict.fromkeys((p["family"], p["axis"], p["stage"]) for p in points))
    found = []
    for family, axis, stage in keys:
        good = [p for p in points if (p["family"], p["axis"], p["stage"]) == (family, axis, stage) and "seconds" in p]
        if len(good) < 3:
            continue
        size = np.log([p["size"] for p in good])
        seconds = [max(p.get("cpu_seconds", p["seconds"]), 1e-4) for p in good]
        fits = {
            "seconds": _slope(size, np.log(seconds)),
            "peak_bytes": _slope(size, np.log([p["peak_bytes"] for p in good])),
        }
        found.append({"family": family, "axis": axis, "stage": stage, "sizes": len(good)} | fits)
    return found


def _slope(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    fit = stats.linregress(x, y)
    half = float(stats.t.ppf(0.975, len(x) - 2) * fit.stderr)
    return {"slope": float(fit.slope), "low": float(fit.slope) - half, "high": float(fit.slope) + half}


def _points(measurement: Measurement, say: Callable[[str], None]) -> list[dict[str, Any]]:
    module = "growth_trials" if measurement.axis == "trials" else "growth_stages"
    command = [sys.executable, "-m", f"hasten_bench.{module}", *measurement.arguments]
    circumstances = results.circumstances()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, check=False, start_new_session=True
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            lines.append({"stage": "process", "failure": f"ended with {done.returncode}: {last[:200]}"})
    except subprocess.TimeoutExpired:
        lines = [{"stage": "process", "failure": f"not finished after {LIMIT_S} s"}]
    say(f"{measurement.name}: {_summary(lines)}")
    first = lines[0] if lines else {}
    size = {
        "parameters": first.get("parameters", int(measurement.arguments[1])) if measurement.axis == "parameters" else 0,
        "samples": int(measurement.arguments[-1]) if measurement.axis == "samples" else 0,
        "trials": first.get("trials", 0),
    }[measurement.axis]
    at = {"family": measurement.family, "axis": measurement.axis, "size": size, "commit": circumstances["commit"]}
    return [at | line for line in lines if "stage" in line]


def _summary(lines: list[dict[str, Any]]) -> str:
    parts = [
        f"{line['stage']} " + (f"{line['seconds']:.1f} s" if "seconds" in line else f"failed: {line['failure']}")
        for line in lines
        if "stage" in line
    ]
    return ", ".join(parts)
