"""Is the doctor right? Whole diagnoses of ten networks, and the advice they give held against what it brings.

    python benchmarks/doctor.py diagnose [NETWORK ...]    whole diagnoses: their time, sums of layers, floors, advice
    python benchmarks/doctor.py apply [NETWORK ...]       make what they advised, in full, with calibration and all
    python benchmarks/doctor.py gain [NETWORK ...]        time what was made, in turns with the subject as it was
    python benchmarks/doctor.py page                      write the tables into docs/doctor.md

`diagnose` and `gain` need the machine to themselves; `apply` does not.
"""

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hasten
import int8_networks
from hasten.machine import fingerprint
from hasten.measure.arrays import ArrayWriter
from hasten.measure.latency import compare
from hasten.measure.worker import Worker
from hasten.recipe import Recipe, make_target
from hasten_bench.nets import cifar_resnet, mobilenet_v2

RESULTS = Path(__file__).parent / "results" / "doctor.json"
PAGE = Path(__file__).parents[1] / "docs" / "doctor.md"
MADE = Path(os.environ.get("HASTEN_BENCH_CACHE", Path.home() / ".cache" / "hasten-bench")) / "doctor"
TURNS = 9
CLOSE, ADDS_UP = 0.25, 0.10


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
    made = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
    return of(First(made), torch.randn(4, 3, size, size))


def text(config: str, model: str, **options: Any) -> hasten.Task:
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
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


def diagnose(name: str) -> dict[str, Any]:
    """A whole diagnosis as a person gets it: how long it takes, whether its parts add up, what it advises."""
    task = NETWORKS[name]()
    started = time.perf_counter()
    found = hasten.doctor(task).to_json()
    seconds = time.perf_counter() - started
    floors = [row | {"program": v["name"]} for v in found["versions"] for row in v["rows"] if row["floor_us"]]
    above = [row for row in floors if is_above(row)]
    return {
        "seconds": seconds,
        "sum_over_whole": {v["name"]: v["sum_over_whole"] for v in found["versions"]},
        "above": [{k: row[k] for k in ("program", "label", "kind", "floor_us", "time_us")} for row in above],
        "floors": len(floors),
        "least_ms": found["ceilings_ms"],
        "median_ms": {k: v["median_ms"] for k, v in found["latency"].items()},
        "failed": found["failed"],
        "advice": [{k: a[k] for k in ("kind", "words", "recipe", "predicted_gain", "low", "high")}
                   for a in found["advice"]],
    }  # fmt: skip


def is_above(row: dict[str, Any]) -> bool:
    """Whether a layer's floor is above its time; the one that set a ceiling meets its own, but for the last bit."""
    over: bool = row["floor_us"] > row["time_us"] * (1 + 1e-9)
    return over


def make(name: str, advice: list[dict[str, Any]]) -> None:
    """Make what was advised, and the original in eager to time it against."""
    folder = MADE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    task = NETWORKS[name]().inner
    (folder / "eager").mkdir()
    make_target("eager").compile(hasten.capture(task.model, task.example), task, folder / "eager")
    for index, x in enumerate(task.example):
        np.save(folder / f"input_{index}.npy", x[:1].numpy())
    for index, row in enumerate(advice):
        with contextlib.suppress(hasten.HastenError):  # its gain stays unknown, and counts as missed
            hasten.apply(Recipe.from_yaml(row["recipe"]), task, folder / f"advice_{index}")


def gain(name: str, advice: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every advised artifact in turns with the original in eager; one that could not be made has no gain."""
    folder = MADE / name
    inputs = [np.load(path) for path in sorted(folder.glob("input_*.npy"))]
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        files = [ArrayWriter(Path(scratch) / f"{i}.bin", x).close() for i, x in enumerate(inputs)]
        log = Path(scratch) / "log.txt"
        workers = {"eager": stack.enter_context(Worker(make_target("eager"), folder / "eager", log))}
        for index, row in enumerate(advice):
            if (made := folder / f"advice_{index}").is_dir():
                target = Recipe.from_yaml(row["recipe"]).target
                workers[str(index)] = stack.enter_context(Worker(target, made, log))
        found = compare(workers, "eager", files, turns=TURNS)
    rows = []
    for index, row in enumerate(advice):
        plain = {key: row[key] for key in row if not key.startswith("got_")}
        if latency := found.get(str(index)):
            plain |= {"got_gain": latency.ratio, "got_low": latency.ratio_low, "got_high": latency.ratio_high,
                      "got_over_predicted": latency.ratio / row["predicted_gain"]}  # fmt: skip
        rows.append(plain)
    return rows


def as_predicted(advice: list[dict[str, Any]]) -> bool:
    """Whether every advice brought what was predicted, within a quarter."""
    return all("got_gain" in a and abs(a["got_over_predicted"] - 1) <= CLOSE for a in advice)


def page(networks: dict[str, Any]) -> str:
    """The tables of docs/doctor.md."""
    lines = [
        "| network | whole diagnosis, s | sum of layers / whole | programs within 10% | floors above measured |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, found in networks.items():
        sums = sorted(found["sum_over_whole"].values())
        inside = sum(abs(x - 1) <= ADDS_UP for x in sums)
        above = f"{sum(map(is_above, found['above']))} of {found['floors']}"
        spread = f"{sums[0]:.2f} to {sums[-1]:.2f}"
        lines.append(f"| {name} | {found['seconds']:.0f} | {spread} | {inside} of {len(sums)} | {above} |")
    timed = {name: found["advice"] for name, found in networks.items() if any("got_gain" in a for a in found["advice"])}
    if not timed:
        return "\n".join([*lines, "", "What the advice brings was not measured with this version yet."])
    lines += ["", "| network | advice | predicted | brought | brought / predicted |", "|---|---|---:|---:|---:|"]
    for name, advice in timed.items():
        for index, a in enumerate(advice):
            predicted = f"{a['predicted_gain']:.2f} [{a['low']:.2f}, {a['high']:.2f}]"
            brought = "not made | "
            if "got_gain" in a:
                interval = f"[{a['got_low']:.2f}, {a['got_high']:.2f}]"
                brought = f"{a['got_gain']:.2f} {interval} | {a['got_over_predicted']:.2f}"
            lines.append(f"| {'' if index else name} | {a['words']} | {predicted} | {brought} |")
    close = sum(as_predicted(advice) for advice in timed.values())
    lines += ["", f"All advice of a network brought within {CLOSE:.0%} of what was predicted: {close} of {len(timed)}."]
    return "\n".join(lines)


def main(command: str, names: list[str]) -> None:
    """Run one command on some networks, or on all of them."""
    logging.disable(logging.WARNING)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"networks": {}}
    networks = results["networks"]
    if command == "page":
        before, _, rest = PAGE.read_text().partition("<!-- measured:begin -->\n")
        after = rest.partition("<!-- measured:end -->")[2]
        PAGE.write_text(
            f"{before}<!-- measured:begin -->\n{page(networks)}\n\nOn {results['machine']['cpu']}, "
            f"{results['machine']['cores']} cores.\n<!-- measured:end -->{after}"
        )
        return
    for name in names or list(NETWORKS):
        started = time.perf_counter()
        if command == "diagnose":
            networks[name] = diagnose(name)
        elif command == "apply":
            make(name, networks[name]["advice"])
        else:
            networks[name]["advice"] = gain(name, networks[name]["advice"])
        if command != "apply":
            results |= {"machine": fingerprint(), "turns": TURNS, "close": CLOSE}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            print(page({name: networks[name]}), flush=True)
        print(f"{command} {name}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
