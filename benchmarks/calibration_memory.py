"""Peak memory of static quantization by the number of calibration images: it must not grow with them.

    python benchmarks/calibration_memory.py

Every count runs in a process of its own; images are made as they are asked for. Writes
`benchmarks/results/calibration_memory.json`.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import hasten
from hasten_bench.nets.cifar_resnet import network

RESULTS = Path(__file__).parent / "results" / "calibration_memory.json"
COUNTS = (500, 10000)
BATCH = 50


class Images:
    """`count` random images of 3x32x32 in batches, never more than one batch in memory."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.count // BATCH):
            yield torch.randn(BATCH, 3, 32, 32, generator=generator)


def child(count: int) -> None:
    model = network(20).eval()
    images = Images(count)
    task = hasten.Task(model, (torch.randn(2, 3, 32, 32),), holdout=Images(BATCH), calibration=images)
    graph = hasten.capture(model, task.example)
    hasten.Quantize(samples=count, observer="entropy").apply(graph, task)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> None:
    peaks = {}
    for count in COUNTS:
        command = [sys.executable, __file__, str(count)]
        peaks[count] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        print(f"{count} images: {peaks[count] / 1e6:.0f} MB")
    found = {"network": "ResNet-20, 32x32", "observer": "entropy", "peak_memory_bytes": peaks}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    child(int(sys.argv[1])) if len(sys.argv) > 1 else main()
