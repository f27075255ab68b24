"""A ViT and a BERT with 30% of their heads and MLP units removed: exactness in float64, latency in two runtimes.

    python benchmarks/prune_encoders.py prepare     # exactness, and artifacts in HASTEN_BENCH_CACHE
    python benchmarks/prune_encoders.py latency     # original beside pruned in every runtime, batch 1

Weights are random, so nothing is said about accuracy.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import hasten
from cifar import provenance, write
from hasten.graph.channels import find_channels
from hasten.graph.cost import parameter_count, total_macs
from hasten.graph.surgery import remove, run_masked
from hasten.measure.artifacts import time_artifacts
from hasten.task import Task
from hasten.techniques.prune_neurons import PruneNeurons
from hasten_bench.material import cache

RATIO = 0.3
TARGETS = ("onnxruntime", "openvino")
VERSIONS = {"original": 0, "pruned": 1, "pruned_to_multiples_of_32": 32}  # widths are rounded up to a multiple
RESULTS = Path(__file__).parent / "results" / "prune_encoders.json"


class Encoder(nn.Module):
    """A transformers model of one input and one output tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x).logits
        return logits


def network(name: str, layers: int) -> tuple[nn.Module, Tensor]:
    """ViT-B/16 at 224 pixels or BERT-base at 128 tokens, with `layers` of its 12 layers."""
    torch.manual_seed(0)
    if name == "vit-b16":
        vit = transformers.ViTForImageClassification(transformers.ViTConfig(num_hidden_layers=layers))
        return Encoder(vit).eval(), torch.randn(1, 3, 224, 224)
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(num_hidden_layers=layers))
    return Encoder(bert).eval(), torch.randint(0, 30000, (1, 128))


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


def prepare(options: argparse.Namespace) -> None:
    """Exactness, MACs, parameters, and both versions compiled for every runtime."""
    for name in options.networks:
        model, x = network(name, options.layers)
        found: dict[str, Any] = read()["networks"].get(name) or {
            "layers": options.layers,
            "relative_error_float64": exactness(model, x),
        }
        task = Task(model, (x,), holdout=[x])
        original = hasten.capture(model, (x,))
        for kind in options.kinds:
            graph = original
            if VERSIONS[kind]:
                graph = PruneNeurons(RATIO, "weight_l2", "layer", round_to=VERSIONS[kind], reconstruct=0).apply(
                    original, task
                )
            found[kind] = {"macs": total_macs(graph), "parameters": parameter_count(graph)}
            for target in options.targets:
                path = compiled(name, kind, target)
                shutil.rmtree(path, ignore_errors=True)
                path.parent.mkdir(parents=True, exist_ok=True)
                hasten.compile(graph, task, target, path)
        results = read()
        results["networks"][name] = found
        write(results, RESULTS)
        print(name, json.dumps(found, indent=1), flush=True)


def latency(options: argparse.Namespace) -> None:
    """Original beside pruned in every runtime, interleaved, batch 1."""
    results = read()
    for name in options.networks:
        times: dict[str, Any] = {}
        for target in options.targets:
            paths = [compiled(name, kind, target) for kind in options.kinds]
            measured = time_artifacts(paths, turns=options.turns)
            times[target] = {
                kind: measured[str(path)].to_json() for kind, path in zip(options.kinds, paths, strict=True)
            }
            print(name, target, {kind: f"{found['ratio']:.2f}x" for kind, found in times[target].items()}, flush=True)
        results["networks"][name]["latency"] = times
        write(results, RESULTS)


def compiled(name: str, kind: str, target: str) -> Path:
    """Where an artifact lies between `prepare` and `latency`."""
    return cache() / "encoders" / f"{name}-{kind}-{target}.hasten"


def read() -> dict[str, Any]:
    """The results so far."""
    if RESULTS.exists():
        results: dict[str, Any] = json.loads(RESULTS.read_text())
        return results
    return provenance() | {"ratio": RATIO, "threads": 2, "networks": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("prepare", "latency"))
    parser.add_argument("--networks", nargs="*", default=["vit-b16", "bert-base"])
    parser.add_argument("--targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--kinds", nargs="*", default=list(VERSIONS))
    parser.add_argument("--layers", type=int, default=12, help="fewer for a quick look")
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    {"prepare": prepare, "latency": latency}[options.command](options)


if __name__ == "__main__":
    main()
