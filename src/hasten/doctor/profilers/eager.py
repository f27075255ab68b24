"""PyTorch's profiler on the captured graph: one event per operator, in the order of the graph's nodes."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from hasten.doctor.profilers.record import LEAST_CALLS, NodeTime, Profile
from hasten.recipe import Target

_PROFILED = 10


def profile(target: Target, folder: Path, inputs: list[np.ndarray], seconds: float) -> Profile:
    """Profile `model.pt2` in `folder`; what recording an event costs is taken off again."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    program = target.load(folder)
    plain = _times(program, inputs, seconds / 2, LEAST_CALLS)
    runs: list[list[tuple[str, float, int]]] = []
    profiled: list[float] = []
    for _ in range(_PROFILED):
        with record(activities=[ProfilerActivity.CPU]) as recorder:
            profiled += _times(program, inputs, 0, 1)
        tops = [e for e in recorder.events() if e.cpu_parent is None and e.name.startswith("aten::")]
        runs.append([(e.name, float(e.cpu_time_total), _events_in(e)) for e in tops])
    count = min(len(run) for run in runs)
    recorded = sum(events for _, _, events in runs[0])
    cost = max(0.0, (float(np.median(profiled)) - float(np.median(plain))) * 1e6) / max(1, recorded)
    names = _names(torch.export.load(folder / "model.pt2").module(check_guards=False), count)
    nodes = []
    for index in range(count):
        kind, events = runs[0][index][0].removeprefix("aten::"), runs[0][index][2]
        spent = float(np.median([run[index][1] for run in runs])) - events * cost
        nodes.append(NodeTime(names[index] or f"{kind}_{index}", kind, (names[index],), max(spent, 0.0)))
    note = f"medians of {_PROFILED} calls, less {cost:.1f} us for each of the {recorded} events that were recorded"
    return Profile(tuple(nodes), float(np.median(profiled)) * 1e6, _PROFILED, note)


def _times(program: Any, inputs: list[np.ndarray], seconds: float, least: int) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        program(*inputs)
        times.append(time.perf_counter() - start)
    return times


def _events_in(event: Any) -> int:
    return 1 + sum(_events_in(child) for child in event.cpu_children)


def _names(graph: Any, count: int) -> list[str]:
    """Names of the nodes that call an operator, if there is one for every event; else blanks."""
    names = [n.name for n in graph.graph.nodes if n.op == "call_function" and "aten" in str(n.target)]
    names = [name for name in names if not name.startswith("sym_size")]
    return names if len(names) == count else [""] * count
