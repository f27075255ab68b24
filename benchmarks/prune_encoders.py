"""A ViT and a BERT with 30% of their heads and MLP units removed: exactness in float64, latency in two runtimes.

Weights are random, so nothing is said about accuracy. Run: python benchmarks/prune_encoders.py --out benchmarks/results
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

import hasten
from hasten.graph.channels import find_channels
from hasten.graph.cost import parameter_count, total_macs
from hasten.graph.surgery import remove, run_masked
from hasten.measure.artifacts import time_artifacts
from hasten.recipe import make_target
from hasten.task import Task
from hasten.techniques.prune_neurons import PruneNeurons

RATIO = 0.3
TARGETS = ("onnxruntime", "openvino")


class Encoder(nn.Module):
    """A transformers model of one input and one output tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x).logits
        return logits


def networks(layers: int) -> dict[str, tuple[nn.Module, Tensor]]:
    """ViT-B/16 at 224 pixels and BERT-base at 128 tokens, each with `layers` of its 12 layers."""
    torch.manual_seed(0)
    vit = transformers.ViTForImageClassification(transformers.ViTConfig(num_hidden_layers=layers))
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(num_hidden_layers=layers))
    return {
        "vit-b16": (Encoder(vit).eval(), torch.randn(1, 3, 224, 224)),
        "bert-base": (Encoder(bert).eval(), torch.randint(0, 30000, (1, 128))),
    }


def exactness(model: nn.Module, x: Tensor) -> float:
    """Largest relative difference between removing and zeroing the first 30% of every group's units, in float64."""
    channels = find_channels(hasten.capture(model.double(), (x.double() if x.is_floating_point() else x,)))
    units = [
        u
        for group in channels.groups
        if not group.approximate and group.kind in ("head", "neuron")
        for u in group.units[: int(RATIO * len(group.units))]
    ]
    inputs = (x.double() if x.is_floating_point() else x,)
    with torch.no_grad():
        removed = remove(channels, units)(*inputs)
    zeroed = run_masked(channels, units, inputs)[0]
    model.float()
    return float((removed - zeroed).abs().max() / zeroed.abs().max())


def measure(model: nn.Module, x: Tensor, turns: int) -> dict[str, Any]:
    """MACs, parameters, and latency at batch 1 of the original and the pruned graph, interleaved."""
    task = Task(model, (x,), holdout=[x])
    original = hasten.capture(model, (x,))
    pruned = PruneNeurons(RATIO, "weight_l2", "layer").apply(original, task)
    found: dict[str, Any] = {
        "macs": [total_macs(original), total_macs(pruned)],
        "parameters": [parameter_count(original), parameter_count(pruned)],
    }
    with tempfile.TemporaryDirectory() as folder:
        for target in TARGETS:
            if make_target(target).missing():
                continue
            paths = [Path(folder) / f"{target}-{kind}.hasten" for kind in ("original", "pruned")]
            for graph, path in zip((original, pruned), paths, strict=True):
                hasten.compile(graph, task, target, path)
            times = time_artifacts(paths, turns=turns)
            found[target] = {Path(name).stem: latency.to_json() for name, latency in times.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12, help="fewer for a quick look")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--out", type=Path, help="folder for prune_encoders.json")
    args = parser.parse_args()
    results: dict[str, Any] = {"ratio": RATIO, "layers": args.layers, "threads": torch.get_num_threads()}
    for name, (model, x) in networks(args.layers).items():
        error = exactness(model, x)
        results[name] = {"relative_error_float64": error} | measure(model, x, args.turns)
        print(name, json.dumps(results[name], indent=1, default=np.ndarray.tolist), flush=True)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "prune_encoders.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
