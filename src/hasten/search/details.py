"""What the report shows beside the trials, measured once at the end: widths, noise of rounding, single latencies."""

import contextlib
import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from hasten.graph.channels import attribute
from hasten.graph.parameters import weighted_layers
from hasten.recipe import Stage
from hasten.search.bench import Bench
from hasten.search.trial import Trial
from hasten.task import Inputs, calibration_inputs

_SAMPLES = 8
_SECONDS = 0.25
_KEPT_CALLS = 400
_TURNS = 4


def write_details(bench: Bench, best: Trial, path: Path, *, remake: bool = True) -> None:
    """Write what is known of the best trial beside its figures; a part that cannot be made is left out.

    Args:
        bench: The original running, and the graphs of the run.
        best: The trial that ships.
        path: The JSON file to write.
        remake: Whether the graph of the best may be made again where it is not at hand, which calibrates anew.
    """
    found: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # nothing here may cost a run its result
        if best.latency is not None:
            found["latency_ms"] = _latencies(bench, best)
    with contextlib.suppress(Exception):
        if remake or bench.graphs.has(best.recipe.steps):
            found |= _of_graphs(bench, best)
    path.write_text(json.dumps(found))


def _latencies(bench: Bench, best: Trial) -> dict[str, list[float]]:
    """Milliseconds of single calls of the original and the best, in turns; at most some hundred of each."""
    inputs, batch = bench.holdout.inputs, bench.sizes.latency
    found: dict[str, list[float]] = {"original": [], "best": []}
    with bench.worker(best.number, best.recipe) as worker:
        for _ in range(_TURNS):
            for name, program in (("original", bench.baseline), ("best", worker)):
                found[name] += [float(t) * 1e3 for t in program.time_calls(inputs, batch, _SECONDS / _TURNS)]
    return {name: _thinned(times) for name, times in found.items()}


def _thinned(times: list[float]) -> list[float]:
    """Evenly many of the sorted times, so that the distribution stays what it is."""
    if len(times) <= _KEPT_CALLS:
        return times
    ordered = sorted(times)
    return [ordered[round(i * (len(ordered) - 1) / (_KEPT_CALLS - 1))] for i in range(_KEPT_CALLS)]


def _of_graphs(bench: Bench, best: Trial) -> dict[str, Any]:
    float_steps = tuple(step for step in best.recipe.steps if step.stage is not Stage.QUANTIZE)
    original, _ = bench.graphs.after((), {})
    pruned, _ = bench.graphs.after(float_steps, {})
    found: dict[str, Any] = {}
    before, after = widths(original), widths(pruned)
    rows = [{"layer": name, "before": before[name], "after": after.get(name, 0)} for name in before]
    if any(row["before"] != row["after"] for row in rows):
        found["widths"] = rows
    if float_steps != best.recipe.steps:
        quantized, _ = bench.graphs.after(best.recipe.steps, {})
        batch = next(islice(calibration_inputs(bench.inner), 1))
        batch = tuple(x[:_SAMPLES] for x in batch)
        layers = noise(pruned, quantized, batch)
        if layers:
            found["quantization"] = {"samples": len(batch[0]), "layers": layers}
    return found


def widths(graph: GraphModule) -> dict[str, int]:
    """Output channels of every convolution and linear layer, by the module that its weight belongs to."""
    found = {}
    for node in weighted_layers(graph):
        weight = node.args[1]
        if isinstance(weight, Node) and weight.op == "get_attr":
            value = attribute(graph, str(weight.target))
            if isinstance(value, Tensor):
                found[str(weight.target).removesuffix(".weight")] = int(value.shape[0])
    return found


def noise(reference: GraphModule, rounded: GraphModule, inputs: Inputs) -> list[dict[str, Any]]:
    """Signal to quantization noise (dB) and ranges of every layer's output, float against rounded.

    Layers are matched by their order, which rounding leaves as it is; batch norm that was folded is part of a layer's
    output on both sides.

    Args:
        reference: The float graph.
        rounded: The same graph with quantize and dequantize nodes.
        inputs: One batch.

    Returns:
        For every layer `layer`, `sqnr_db`, `low` and `high` of the float values, and `held_low` and `held_high` that
        the integers behind it can hold (None where it is not rounded). Empty if the graphs have different layers.
    """
    from hasten.quantization.static import inference_form

    labels = list(widths(reference))
    folded = inference_form(reference, inputs)
    ours, theirs = weighted_layers(folded), weighted_layers(rounded)
    if len(ours) != len(theirs) or len(ours) != len(labels):
        return []
    expected, found = _values(folded, ours, inputs), _values(rounded, theirs, inputs)
    rows = []
    for label, own, other in zip(labels, ours, theirs, strict=True):
        signal, error = expected[own], found[other] - expected[own]
        power, lost = float(signal.square().sum()), float(error.square().sum())
        low, high = _held(other)
        row = {
            "layer": label,
            "low": float(signal.min()),
            "high": float(signal.max()),
            "held_low": low,
            "held_high": high,
        }
        rows.append(row | {"sqnr_db": 10 * math.log10(power / lost) if power and lost else None})
    return rows


def _values(graph: GraphModule, wanted: list[Node], inputs: Inputs) -> dict[Node, Tensor]:
    kept, values = set(wanted), dict[Node, Tensor]()

    class Watched(Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            if n in kept:
                values[n] = result.double()
            return result

    with torch.no_grad():
        Watched(graph).run(*inputs)
    return values


def _held(node: Node) -> tuple[float | None, float | None]:
    """Values that the first quantize node behind `node` can hold, through what the integer kernel applies first."""
    for _ in range(3):
        users = list(node.users)
        for user in users:
            if "quantize_per_tensor" in str(user.target) and "dequantize" not in str(user.target):
                scale, zero, low, high = (float(str(x)) for x in user.args[1:5])
                return (low - zero) * scale, (high - zero) * scale
        if len(users) != 1:
            break
        node = users[0]
    return None, None
