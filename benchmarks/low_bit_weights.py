"""Top-1 of CIFAR ResNets with weights of few bits, linear against powers of two, and of static int8.

    python benchmarks/low_bit_weights.py [20 56]

The weights are those that `cifar.py` fine-tuned on these images and keeps under HASTEN_BENCH_CACHE; where it has not,
the published ones, trained on the original pixels, with which the float network stands at about 81% (ResNet-20) and
83% (ResNet-56) on JPEG files. The results say which. Every technique is
calibrated on training images and scored once on test images. Writes `benchmarks/results/low_bit_weights.json`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import hasten
from cifar import provenance
from hasten.recipe import Technique, describe
from hasten_bench.data.cifar import decode
from hasten_bench.material import cache, shared_data
from hasten_bench.nets.cifar_resnet import network

RESULTS = Path(__file__).parent / "results" / "low_bit_weights.json"
SCORED = int(os.environ.get("HASTEN_BENCH_ROWS", "10000"))
CALIBRATION = 256


def rows() -> list[Technique]:
    found: list[Technique] = [hasten.Quantize(), hasten.Quantize(rounding="nearest", bias_correction=False)]
    for bits in (4, 3):
        found += [
            hasten.QuantizeWeights(scheme="power_of_two", bits=bits),
            hasten.QuantizeWeights(scheme="power_of_two", bits=bits, bias_correction=False),
            hasten.QuantizeWeights(bits=bits, rounding="nearest", bias_correction=False),
            hasten.QuantizeWeights(bits=bits, rounding="nearest"),
            hasten.QuantizeWeights(bits=bits),
            hasten.QuantizeWeights(bits=bits, rounding="adaround"),
        ]
    return found


def measure(depth: int) -> dict[str, Any]:
    model = network(depth)
    kept = cache() / "cifar" / f"resnet{depth}.safetensors"
    chosen = kept if kept.exists() else shared_data(f"resnet{depth}_cifar10.safetensors")
    model.load_state_dict(load_file(chosen))
    training, _ = decode("cifar10_train.npz")
    test, labels = decode("cifar10_test.npz")
    images, truth = torch.from_numpy(test[:SCORED]), torch.from_numpy(labels[:SCORED])
    calibration = list(torch.from_numpy(training[:CALIBRATION]).split(64))
    task = hasten.Task(model.eval(), (images[:2],), [(images[:64], truth[:64])], calibration=calibration)
    graph = hasten.capture(model, task.example)

    def accuracy(changed: torch.nn.Module) -> float:
        with torch.no_grad():
            found = torch.cat([changed(x).argmax(1) for x in images.split(250)])
        return float((found == truth).float().mean())

    table = {"float": accuracy(graph)}
    for technique in rows():
        table[describe(technique)] = accuracy(technique.apply(graph, task))
        print(f"ResNet-{depth} {describe(technique)}: {table[describe(technique)]:.4f}", flush=True)
    weights = "fine-tuned" if kept.exists() else "published"
    return {"top1": table, "images": len(truth), "weights": weights} | provenance()


def main(depths: list[int]) -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for depth in depths or [20]:
        results[f"resnet{depth}"] = measure(depth)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main([int(depth) for depth in sys.argv[1:]])
