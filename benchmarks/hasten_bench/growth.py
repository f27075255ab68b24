"""How the cost of each stage of hasten grows: with the network, and with the calibration set.

Each size runs in a process of its own (`growth_stages.py`), which measures time and peak memory stage by stage. The
slope of log cost against log size is the exponent: 1 is linear. A network that fails at a size keeps its point with
the reason.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

FAMILIES = ("cnn", "transformer")
SIZES = (1e6, 3e6, 1e7, 3e7, 1e8, 3e8, 1e9)
SAMPLES = (16, 64, 256, 1024)
SAMPLES_PARAMETERS = 1e6
LIMIT_S = 1800


def run(largest: float, say: Callable[[str], None]) -> dict[str, Any]:
    """The growth document: points and slopes.

    Args:
        largest: Largest number of parameters to try.
        say: Receives one line per process.
    """
    sizes = [size for size in SIZES if size <= largest * 1.001]
    points = [p for family in FAMILIES for size in sizes for p in _points(family, size, 32, "parameters", say)]
    points += [p for n in SAMPLES for p in _points("cnn", SAMPLES_PARAMETERS, n, "samples", say)]
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
        fits = {name: _slope(size, np.log([max(p[name], 1e-4) for p in good])) for name in ("seconds", "peak_bytes")}
        found.append({"family": family, "axis": axis, "stage": stage, "sizes": len(good)} | fits)
    return found


def _slope(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    fit = stats.linregress(x, y)
    half = float(stats.t.ppf(0.975, len(x) - 2) * fit.stderr)
    return {"slope": float(fit.slope), "low": float(fit.slope) - half, "high": float(fit.slope) + half}


def _points(family: str, size: float, samples: int, axis: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "hasten_bench.growth_stages", family, str(int(size)), str(samples)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            env=os.environ,
            start_new_session=True,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            lines.append({"stage": "process", "failure": f"ended with {done.returncode}: {last[:200]}"})
    except subprocess.TimeoutExpired:
        lines = [{"stage": "process", "failure": f"not finished after {LIMIT_S} s"}]
    parameters = next((line["parameters"] for line in lines if "parameters" in line), int(size))
    say(f"{family}, {parameters / 1e6:.1f} M parameters, {samples} samples: {_summary(lines)}")
    at = {"family": family, "axis": axis, "size": parameters if axis == "parameters" else samples}
    return [at | line for line in lines if "stage" in line]


def _summary(lines: list[dict[str, Any]]) -> str:
    parts = [
        f"{line['stage']} " + (f"{line['seconds']:.1f} s" if "seconds" in line else f"failed: {line['failure']}")
        for line in lines
        if "stage" in line
    ]
    return ", ".join(parts)
