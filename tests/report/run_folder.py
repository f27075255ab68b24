"""A run folder as a search writes it, of any size, for the page's tests and its benchmark. The numbers are made up."""

import json
import random
from pathlib import Path
from typing import Any

from hasten.machine import fingerprint
from hasten.measure.certificate import certify
from hasten.measure.latency import Latency, Throughput
from hasten.recipe import Recipe, make_target, make_technique
from hasten.search.journal import Journal
from hasten.search.trial import Trial


def write_run(folder: Path, trials: int, finished: bool = True) -> None:
    """Write `trials` trials, decisions, a certificate and details through the search's own writers."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(0)
    journal = Journal(folder / "journal.jsonl")
    begin: dict[str, Any] = {
        "task": "made up </script><b>", "device": fingerprint(), "seed": 0, "missing": {"tpu": "hardware"},
        "search": 225,
        "certify": 675, "is": {"targets": ["eager", "onnxruntime"]},
        "budget": {"max_drop": 0.02, "confidence": 0.95, "minutes": None, "finalists": 2},
    }  # fmt: skip
    journal.append("begin", begin)
    made = [_trial(number, generator) for number in range(trials)]
    for trial in made:
        journal.append("trial", trial.to_json(), str(trial.number))
        about = {"what": f"cut {trial.number}", "chosen": trial.number % 2 == 0, "why": "it is promising"}
        journal.append("decision", about | {"predicted_gain": 1.2, "predicted_cost_s": 3.0}, str(trial.number))
    if not finished:
        return
    right = np.ones(675)
    proof = certify(
        right, right, max_drop=0.02, confidence=0.95, finalists=1, share=1.0, indices=np.arange(675), target="labels",
        seed=0,
    )  # fmt: skip
    final = {
        "number": 1,
        "latency": _latency(9.0).to_json(),
        "throughput": Throughput(8, 900.0, 3.0).to_json(),
        "certificate": proof.to_json(),
    }
    result = begin | {
        "explanation": "it passed", "best": "best.hasten", "best_number": 1, "finals": [final], "wall_s": 100.0,
        "original": {"latency": _latency(1.0).to_json(), "throughput": Throughput(8, 300.0, 1.0).to_json()},
        "trials": [trial.to_json() for trial in made], "seconds": {"measuring": 60.0, "compiling": 40.0},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    layers = [
        {"layer": f"conv{i}", "sqnr_db": 30.0 + i, "low": -1.0, "high": 1.0, "held_low": -1.1, "held_high": 1.1}
        for i in range(20)
    ]
    details = {
        "latency_ms": {"original": [1.0 + i / 100 for i in range(100)], "best": [0.1 + i / 1000 for i in range(100)]},
        "widths": [{"layer": f"conv{i}", "before": 64, "after": 64 - i} for i in range(20)],
        "quantization": {"samples": 8, "layers": layers},
    }
    (folder / "details.json").write_text(json.dumps(details))
    drops = {str(group): {"0.25": 0.1, "0.5": 0.3} for group in range(4)}
    (folder / "sensitivity-prune_filters.json").write_text(json.dumps({"key": "x", "drops": drops}))


def _latency(ratio: float) -> Latency:
    return Latency(1, 1 / ratio, 1.1 / ratio, 1.3 / ratio, ratio, 0.9 * ratio, 1.1 * ratio, 5, 100)


def _trial(number: int, generator: random.Random) -> Trial:
    target = make_target("onnxruntime" if number else "eager")
    steps = (make_technique("prune_filters", {"ratio": generator.uniform(0.1, 0.8)}), make_technique("quantize"))
    recipe = Recipe(steps if number > 1 else (), target)
    if number % 10 == 7:
        return Trial(number, recipe, failure="the target cannot run this graph")
    ratio = 1.0 if number == 0 else generator.uniform(1.5, 20.0)
    drop = 0.0 if number < 2 else generator.uniform(0.0, 0.1)
    return Trial(
        number, recipe, latency=_latency(ratio), gain=ratio, score=0.95 - drop, drop=drop, changed=drop / 2,
        size_bytes=50_000, peak_memory_bytes=90_000_000, seconds={"compile": 1.0, "latency": 0.5},
    )  # fmt: skip
