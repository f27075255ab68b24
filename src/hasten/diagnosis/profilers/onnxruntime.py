"""ONNX Runtime's own profiler: `enable_profiling` writes one event per executed node."""

import json
import math
import os
import re
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.diagnosis.probes import write_chain
from hasten.diagnosis.profilers.record import NodeTime, Profile, alternate, of_undisturbed_calls
from hasten.recipe import Target

_SUFFIX = "_kernel_time"
# Durations are cut to whole microseconds, which takes half of one away on average.
_CUT_US = 0.5
_CHAIN = 32
_COST_SECONDS = 0.6
_INTEGER = re.compile(r"QLinear|Integer|QGemm|QAttention|NhwcMaxPool")


def profile(target: Target, folder: Path, inputs: list[np.ndarray], seconds: float) -> Profile:
    """Profile `model.onnx` in `folder`; times are those of undisturbed calls, less what recording a node costs."""
    costs = {parallel: _cost(target, parallel) for parallel in (False, True)}
    seen = _record(target, folder, inputs, seconds)
    found: dict[str, list[float]] = defaultdict(list)
    kinds: dict[str, str] = {}
    parallel: dict[str, bool] = {}
    elements: dict[str, int] = {}
    for event in _kernels(seen.events):
        key = _key(event)
        found[key].append(event["dur"] + _CUT_US)
        kinds[key] = event["args"]["op_name"]
        parallel[key] = _in_parallel(event)
        elements[key] = _elements(event)
    spent = of_undisturbed_calls(found)
    factor = _factor(seen, sum(spent.values()), sum(costs[parallel[key]] for key in spent))
    nodes = [
        NodeTime(
            name=(name := key.split("\0")[0]),
            kind=kinds[key],
            origins=(name,),
            time_us=max(time_us - factor * costs[parallel[key]], 0.1),
            precision="int8" if _INTEGER.search(kinds[key]) else "fp32",
            elements=elements[key],
        )
        for key, time_us in spent.items()
    ]
    note = (
        f"mean over the quickest quarter of {seen.calls} calls, less what recording a node was measured to cost "
        f"({factor * costs[False]:.1f} us in one thread, {factor * costs[True]:.1f} us in several); 0.5 us is added to "
        "each for the cut to whole microseconds"
    )
    return Profile(tuple(nodes), seen.plain_us, seen.profiled_us, seen.calls, note)


@dataclass(frozen=True)
class _Record:
    events: list[dict[str, Any]]
    plain_us: float
    profiled_us: float
    calls: int


def _record(target: Target, folder: Path, inputs: list[np.ndarray], seconds: float) -> _Record:
    program = target.load(folder)
    options: Any = target.session_options()  # type: ignore[attr-defined]
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as scratch:
        options.profile_file_prefix = os.path.join(scratch, "profile")
        session = target.session(folder, options)  # type: ignore[attr-defined]
        feeds = dict(zip((value.name for value in session.get_inputs()), inputs, strict=True))
        plain_us, profiled_us, _, calls = alternate(lambda: program(*inputs), lambda: session.run(None, feeds), seconds)
        return _Record(json.loads(Path(session.end_profiling()).read_text()), plain_us, profiled_us, calls)


def _factor(seen: _Record, recorded_us: float, cost_us: float) -> float:
    """How many times more recording costs in this program than in the chain, whose caches are warm.

    Durations that add up to more than the plain call hold more of it. It is never more than all by which the profiler
    was seen to lengthen the call.
    """
    if cost_us <= 0:
        return 1.0
    longer_us = max(0.0, seen.profiled_us - seen.plain_us)
    return min(max(1.0, (recorded_us - seen.plain_us) / cost_us), longer_us / cost_us)


def _cost(target: Target, parallel: bool) -> float:
    """Microseconds that the profiler adds to the duration of a node: in a chain of equal nodes it adds nothing else."""
    with tempfile.TemporaryDirectory() as scratch:
        shape = write_chain(_CHAIN, Path(scratch) / "model.onnx", parallel=parallel)
        chain = _record(target, Path(scratch), [np.ones(shape, np.float32)], _COST_SECONDS)
    kind = "Conv" if parallel else "Softmax"
    seen: dict[str, list[float]] = defaultdict(list)
    for event in _kernels(chain.events):
        if event["args"]["op_name"] == kind:
            seen[_key(event)].append(event["dur"] + _CUT_US)
    recorded = of_undisturbed_calls(seen)
    return max(0.0, (sum(recorded.values()) - chain.plain_us) / _CHAIN)


def _in_parallel(event: dict[str, Any]) -> bool:
    """Whether more than the calling thread worked on a node."""
    return bool(event["args"].get("thread_scheduling_stats", {}).get("main_thread", {}).get("block_size"))


def _key(event: dict[str, Any]) -> str:
    """Two nodes may carry one name: the runtime's own number of the node tells them apart."""
    return f"{event['name'].removesuffix(_SUFFIX)}\0{event['args'].get('node_index', '')}"


def _elements(event: dict[str, Any]) -> int:
    sides = ("input_type_shape", "output_type_shape")
    return sum(math.prod(next(iter(x.values()))) for side in sides for x in event["args"].get(side, ()))


def _kernels(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["cat"] == "Node" and event["name"].endswith(_SUFFIX)]
