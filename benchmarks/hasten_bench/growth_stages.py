"""One network through the stages of hasten, in one process: `python -m hasten_bench.growth_stages FAMILY SIZE SAMPLES`.

Prints one JSON line per stage: seconds, peak memory while it ran, or why it failed.
"""

import gc
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

import hasten
from hasten.graph.channels import find_channels
from hasten.graph.onnx import write_onnx
from hasten.recipe import make_technique
from hasten_bench.nets import resnet50, vit

IMAGE = 64


def cnn(parameters: float) -> nn.Module:
    """A bottleneck ResNet of about `parameters`: ResNet-50's 23.5 M without its head, scaled in width."""
    width = max(math.sqrt(parameters / 23.5e6), 8 / 64)
    return resnet50.network(width=round(64 * width) / 64, classes=10)


def transformer(parameters: float) -> nn.Module:
    """A vision transformer of about `parameters`: 12 w^2 a layer, width growing with depth as in published families."""
    depth = max(2, min(32, round(4 * math.log10(parameters / 1e5))))
    width = max(64, 64 * round(math.sqrt(parameters / (12 * depth)) / 64))
    return vit.network(width=width, depth=depth, heads=width // 64, patch=16, size=IMAGE, classes=10)


def stages(family: str, model: nn.Module, samples: int, folder: Path) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """The stages in order; each takes what the earlier ones made, by name."""
    example = (torch.rand(2, 3, IMAGE, IMAGE),)
    rows = [torch.rand(min(16, samples), 3, IMAGE, IMAGE) for _ in range(-(-samples // 16))]
    task = hasten.Task(model, example, holdout=[(x, None) for x in rows], calibration=rows)

    def step(name: str, **options: Any) -> Callable[[dict[str, Any]], GraphModule]:
        return lambda made: make_technique(name, options).apply(made["capture"], task)

    return {
        "capture": lambda made: hasten.capture(model, example),
        "dependencies": lambda made: find_channels(made["capture"]),
        "pruning": step("prune_filters" if family == "cnn" else "prune_neurons", ratio=0.25),
        "weight pruning": step("prune_weights", sparsity=0.5),
        "weight-only int8": step("quantize_weights", rounding="nearest", bias_correction=False),
        "ONNX export, weight-only": lambda made: write_onnx(made["weight-only int8"], example, folder / "int8.onnx"),
        "weight-only int4, GPTQ": step("quantize_weights", bits=4, group=32),
        "calibration and int8": step("quantize", samples=samples),
        "ONNX export, float": lambda made: write_onnx(made["capture"], example, folder / "float.onnx"),
    }


# Rounding against data solves a system per layer, which grows with its inputs squared times its outputs.
REFINING = ("weight-only int4, GPTQ", "calibration and int8")
LARGEST_REFINED = 1.01e8
LAST_NEED = {"weight-only int8": "ONNX export, weight-only", "capture": "ONNX export, float"}


def main() -> int:
    """Run all stages; a failed one ends the run only if a later one needs it."""
    family, size, samples = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    torch.manual_seed(0)
    model = {"cnn": cnn, "transformer": transformer}[family](size).eval()
    _say({"parameters": sum(p.numel() for p in model.parameters()), "base_bytes": peak_bytes()})
    made: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, stage in stages(family, model, samples, Path(scratch)).items():
            if name in REFINING and size > LARGEST_REFINED:
                continue
            _reset_peak()
            started, cpu = time.perf_counter(), time.process_time()
            try:
                made[name] = stage(made)
                seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
                line: dict[str, Any] = seconds | {"peak_bytes": peak_bytes()}
            except Exception as error:
                line = {"failure": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"}
            _say({"stage": name} | line)
            # What no later stage needs would only add to their memory; graphs stand in reference cycles.
            made = {kept: x for kept, x in made.items() if LAST_NEED.get(kept) not in (None, name)}
            gc.collect()
    return 0


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _reset_peak() -> None:
    # Linux: sets the peak back to what is resident now, so that each stage has its own.
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def peak_bytes() -> int:
    """Peak resident memory since the last reset (since the start of the process where there is no reset)."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    raise SystemExit(main())
