"""Logic against sparsity and weight format: a perceptron 64-8-10 on digits as UltraScale+ cells, checked bit for bit.

python benchmarks/fpga.py --out benchmarks/results/fpga_luts.json

Weights are pruned by magnitude and trained again, quantized to 8 bits, and then rounded further as integers without
training: to fewer bits, or to powers of two. Accuracy is of the integers on samples that nothing was chosen on.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from hasten import environments
from hasten.graph.capture import capture
from hasten.graph.integer import IntegerNet
from hasten.graph.plan import plan
from hasten.graph.to_integers import integer_net
from hasten.machine import versions
from hasten.recipe import make_technique
from hasten.task import Task

SPARSITIES = (0.0, 0.5, 0.75, 0.9)
FORMATS = ("8 bits", "4 bits", "power of two")


def digits_task() -> tuple[Task, np.ndarray, np.ndarray]:
    """A trained perceptron with its task, and 897 test samples that neither training nor calibration saw."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = torch.from_numpy(x[order]), torch.from_numpy(y[order])
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:900]), y[:900]).backward()
        optimizer.step()
    train = [(x[i : i + 100], y[i : i + 100]) for i in range(0, 900, 100)]
    task = Task(model=model.eval(), example=(x[:8],), holdout=train, train=train)
    return task, x[900:].numpy(), y[900:].numpy()


def rounded(net: IntegerNet, form: str) -> IntegerNet:
    """The network with its integer weights rounded to `form`; biases keep the zero point's correction right."""
    layers, zero_point = [], net.input_zero_point
    for layer in net.layers:
        weight = round_weight(layer.weight, form)
        bias = layer.bias - zero_point * (weight.sum(1) - layer.weight.sum(1))
        layers.append(replace(layer, weight=weight, bias=bias))
        zero_point = layer.rescale.zero_point if layer.rescale else 0
    return replace(net, layers=tuple(layers))


def round_weight(weight: np.ndarray, form: str) -> np.ndarray:
    """Integers within int8 to multiples of a step, or to a sign and a power of two."""
    if form == "power of two":
        with np.errstate(divide="ignore"):
            exponent = np.round(np.log2(np.abs(weight).astype(np.float64)))
        made: np.ndarray = np.where(weight == 0, 0, np.sign(weight) * 2 ** np.clip(exponent, 0, 6)).astype(np.int64)
        return made
    step = 2 ** (8 - int(form.split()[0]))
    largest = 127 // step * step
    return np.clip(np.round(weight / step) * step, -largest, largest).astype(np.int64)


def row(net: IntegerNet, x: np.ndarray, y: np.ndarray, family: str) -> dict[str, Any]:
    """Accuracy, nonzero weights, and what the logic takes."""
    q = net.quantize(x)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        net.save(folder)
        np.save(folder / "samples.npy", q)
        report = environments.call("fpga", "compile", folder=folder, depth=8, simulator="verilator", synthesis=family)
    found = {k: report["synthesis"][k] for k in ("lut", "ff", "carry", "dsp", "tool")}
    return {
        "accuracy": float((net.dequantize(net.run(q)).argmax(1) == y).mean()),
        "nonzero_weights": int(sum(np.count_nonzero(layer.weight) for layer in net.layers)),
        "samples_checked": report["samples"],
        "mismatches": sum(report["mismatches"].values()),
        "cycles": report["latency_cycles"],
        "adder_bits_estimate": report["adder_bits_estimate"],
        **found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    task, x, y = digits_task()
    rows: list[dict[str, Any]] = []
    for sparsity in SPARSITIES:
        graph = capture(task.model, task.example)
        if sparsity:
            pruned = {"sparsity": sparsity, "epochs": 40, "steps": 6, "schedule": "cubic", "lr": 0.05}
            graph = make_technique("prune_weights", pruned).apply(graph, task)
        nearest = {"placement": "symmetric", "rounding": "nearest"}
        graph = make_technique("quantize", nearest).apply(graph, task)
        net = integer_net(plan(graph, task.example), multiplier_bits=10)
        for form in FORMATS:
            rows.append({"sparsity": sparsity, "weights": form, **row(rounded(net, form), x, y, "xilinx")})
            print(rows[-1], flush=True)
            found = {"network": "perceptron 64-8-10 on digits", "test_samples": len(x), "versions": versions()}
            arguments.out.write_text(json.dumps({**found, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
