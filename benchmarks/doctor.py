"""Does the doctor's advice bring what it predicts? Diagnose ten networks, apply every advice, time what it makes.

    python benchmarks/doctor.py [NETWORK ...]

The prediction comes from `hasten.doctor`; then the advised recipe is made by `hasten.apply`, with calibration and all,
and the artifact is timed in turns with the subject as it was. Writes `benchmarks/results/doctor.json`.
"""

import contextlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hasten
import int8_networks
from hasten.machine import fingerprint
from hasten.measure.arrays import ArrayWriter
from hasten.measure.latency import Latency, compare
from hasten.measure.worker import Worker
from hasten.recipe import Recipe, make_target
from hasten_bench.nets import cifar_resnet, mobilenet_v2

RESULTS = Path(__file__).parent / "results" / "doctor.json"
TURNS = 11
CLOSE = 0.25


class First(nn.Module):
    """The first output of a transformers model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[0]


def vision(config: str, model: str, size: int = 224, **options: Any) -> hasten.Task:
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(return_dict=False, **options)).eval()
    return of(First(made), torch.randn(4, 3, size, size))


def text(config: str, model: str, **options: Any) -> hasten.Task:
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(return_dict=False, **options)).eval()
    return of(First(made), torch.randint(0, 1000, (4, 128)))


def of(model: nn.Module, x: Tensor) -> hasten.Task:
    return hasten.Task(model, (x,), holdout=[x], calibration=[x])


def known(name: str) -> hasten.Task:
    net = int8_networks.NETWORKS[name]()
    example = tuple(torch.cat(parts) for parts in zip(*net.calibration[:4], strict=True))
    return hasten.Task(net.model, example, holdout=[(example, None)], calibration=net.calibration[:16])


def cifar(depth: int) -> hasten.Task:
    torch.manual_seed(0)
    return of(cifar_resnet.network(depth).eval(), torch.randn(4, 3, 32, 32))


def mobilenet() -> hasten.Task:
    torch.manual_seed(0)
    return of(mobilenet_v2.network().eval(), torch.randn(4, 3, 224, 224))


NETWORKS: dict[str, Callable[[], hasten.Task]] = {
    "efficientnet-lite0": lambda: known("efficientnet-lite0"),
    "minilm": lambda: known("minilm"),
    "resnet-50": lambda: known("resnet-50"),
    "cifar-resnet-56": lambda: cifar(56),
    "mobilenet-v2": mobilenet,
    "resnet-18": lambda: vision(
        "ResNetConfig", "ResNetForImageClassification", layer_type="basic", hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2]),
    "vit-small": lambda: vision(
        "ViTConfig", "ViTForImageClassification", hidden_size=384, num_hidden_layers=6, num_attention_heads=6,
        intermediate_size=1536),
    "distilbert": lambda: text("DistilBertConfig", "DistilBertForSequenceClassification", n_layers=4),
    "bert-small": lambda: text(
        "BertConfig", "BertForSequenceClassification", hidden_size=512, num_hidden_layers=4, num_attention_heads=8,
        intermediate_size=2048),
    "regnet": lambda: vision(
        "RegNetConfig", "RegNetForImageClassification", embedding_size=32, hidden_sizes=[24, 56, 152, 368],
        depths=[1, 1, 4, 7], groups_width=8, layer_type="x"),
}  # fmt: skip


def main(names: list[str]) -> None:
    logging.disable(logging.WARNING)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"networks": {}}
    results |= {"machine": fingerprint(), "turns": TURNS, "close": CLOSE}
    for name in names or list(NETWORKS):
        results["networks"][name] = examine(NETWORKS[name](), name)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    close = [name for name, found in results["networks"].items() if found["all_close"]]
    print(f"all advice within {CLOSE:.0%} on {len(close)} of {len(results['networks'])} networks")


def examine(task: hasten.Task, name: str) -> dict[str, Any]:
    started = time.perf_counter()
    found = hasten.doctor(task).to_json()
    seconds = time.perf_counter() - started
    floors = [row for v in found["versions"] for row in v["rows"] if row["floor_us"]]
    advice = [applied(task, advice) for advice in found["advice"]]
    result = {
        "seconds": seconds,
        "sum_over_whole": {v["name"]: v["sum_over_whole"] for v in found["versions"]},
        "floors_above_measured": sum(row["floor_us"] > row["time_us"] for row in floors),
        "layers_measured": len(floors),
        "least_ms": found["ceilings_ms"],
        "median_ms": {k: v["median_ms"] for k, v in found["latency"].items()},
        "advice": advice,
        "all_close": all(abs((a["got_over_predicted"] or 0) - 1) <= CLOSE for a in advice),
    }
    said = [f"{a['kind']} predicted {a['predicted_gain']:.2f}x, got {a['got_gain'] or 0:.2f}x" for a in advice]
    print(f"{name}: {seconds:.0f} s; {'; '.join(said)}", flush=True)
    return result


def applied(task: hasten.Task, advice: dict[str, Any]) -> dict[str, Any]:
    row = {key: advice[key] for key in ("kind", "words", "predicted_gain", "low", "high")}
    recipe = Recipe.from_yaml(advice["recipe"])
    with tempfile.TemporaryDirectory() as scratch:
        try:
            hasten.apply(recipe, task, Path(scratch) / "made")
            latency = timed(task, recipe, Path(scratch))
        except hasten.HastenError as error:
            return row | {"got_gain": None, "got_over_predicted": None, "failure": str(error)}
    return row | {
        "got_gain": latency.ratio,
        "got_low": latency.ratio_low,
        "got_high": latency.ratio_high,
        "got_over_predicted": latency.ratio / advice["predicted_gain"],
    }


def timed(task: hasten.Task, recipe: Recipe, scratch: Path) -> Latency:
    """The advised artifact in turns with the original in eager."""
    (scratch / "eager").mkdir()
    eager = make_target("eager")
    eager.compile(hasten.capture(task.model, task.example), task, scratch / "eager")
    files = [ArrayWriter(scratch / f"{i}.bin", x[:1].numpy()).close() for i, x in enumerate(task.example)]
    with contextlib.ExitStack() as stack:
        workers = {
            "eager": stack.enter_context(Worker(eager, scratch / "eager", scratch / "log.txt")),
            "made": stack.enter_context(Worker(recipe.target, scratch / "made", scratch / "log.txt")),
        }
        return compare(workers, "eager", files, turns=TURNS)["made"]


if __name__ == "__main__":
    main(sys.argv[1:])
