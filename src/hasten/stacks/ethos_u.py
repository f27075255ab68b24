"""Arm Ethos-U: a fully int8 TFLite file through Vela, Arm's own compiler, and what it states about the result."""

import csv
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from hasten.errors import Unsupported


def compile(folder: Path, accelerator: str) -> dict[str, Any]:
    """Turn `model.tflite` in `folder` into `model_vela.tflite`.

    Args:
        folder: See above.
        accelerator: As Vela names it, such as "ethos-u55-128".

    Returns:
        Vela's estimates: `cycles`, `sram_bytes`, `weight_bytes` (as encoded), `latency_us`, `npu_share`, and its
        version as `tool`.

    Raises:
        Unsupported: Vela refuses the file.
    """
    vela = Path(sys.executable).parent / "vela"
    command = [str(vela), "model.tflite", "--accelerator-config", accelerator, "--output-dir", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unsupported(f"Vela must be able to compile the file, but: {(done.stderr or done.stdout).strip()[-300:]}")
    (summary,) = folder.glob("model_summary_*.csv")
    with summary.open() as lines:
        (row,) = list(csv.DictReader(lines))
    summary.unlink()
    for log in folder.glob("*per-layer*.csv"):
        log.unlink()
    version = subprocess.run([str(vela), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return {
        "cycles": float(row["cycles_total"]),
        "sram_bytes": float(row["sram_memory_used"]) * 1024,
        "weight_bytes": float(row["total_npu_encoded_weights"]),
        "latency_us": float(row["inference_time"]) * 1e6,
        "npu_share": _share(done.stdout),
        "tool": f"vela {version}",
    }


def _share(text: str) -> float:
    """Share of the operators that run on the accelerator."""
    counts = {
        kind: int(found[1]) if (found := re.search(rf"{kind} operators\s*=\s*(\d+)", text)) else 0
        for kind in ("CPU", "NPU")
    }
    total = sum(counts.values())
    return counts["NPU"] / total if total else 0.0
