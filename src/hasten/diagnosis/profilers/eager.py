"""PyTorch eager: the captured graph run node by node with a clock around each.

Not `torch.profiler`: it records each operator and all that it calls, about seven events per convolution at 2 to 4 us
each, which on a small network is as much as the network itself. A clock around a node costs a tenth of a microsecond.
"""

import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hasten.diagnosis.profilers.record import NodeTime, Profile, alternate, of_undisturbed_calls
from hasten.recipe import Target


def profile(target: Target, folder: Path, inputs: list[np.ndarray], seconds: float) -> Profile:
    """Profile the stored graph in `folder`; times are those of undisturbed calls."""
    import torch
    from torch.fx import Interpreter, Node

    from hasten.graph.storage import load_graph

    program = target.load(folder)
    graph = load_graph(folder)
    times: dict[Node, list[float]] = defaultdict(list)
    elements: dict[Node, int] = {}

    class Clocked(Interpreter):
        def run_node(self, n: Node) -> Any:
            start = time.perf_counter()
            result = super().run_node(n)
            times[n].append(time.perf_counter() - start)
            return result

    class Counted(Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            touched = [result, *(self.env[x] for x in n.all_input_nodes)]
            elements[n] = sum(x.numel() for x in touched if isinstance(x, torch.Tensor))
            return result

    interpreter = Clocked(graph)
    tensors = [torch.from_numpy(x) for x in inputs]
    with torch.inference_mode():
        Counted(graph, garbage_collect_values=False).run(*tensors)

    def clocked() -> None:
        with torch.inference_mode():
            interpreter.run(*tensors)

    plain_us, profiled_us, _, calls = alternate(lambda: program(*inputs), clocked, seconds)
    nodes = _rows(graph, of_undisturbed_calls(times), elements)
    share = _longer(sum(node.time_us for node in nodes), plain_us, profiled_us)
    return Profile(
        tuple(replace(node, time_us=node.time_us * (1 - share)) for node in nodes),
        plain_us,
        profiled_us,
        calls,
        "a clock around each node, mean over the quickest quarter of the calls, "
        f"less the {share:.0%} by which every node ran longer than in a plain call",
    )


def _longer(clocked_us: float, plain_us: float, profiled_us: float) -> float:
    """The share of the nodes' time that the plain call does not take.

    Run node by node, the network's values come and go in another order, so that the allocator asks the system for
    fresh pages where a plain call reuses its own. It is never more than by which the whole call was lengthened.
    """
    return max(0.0, min(clocked_us - plain_us, profiled_us - plain_us)) / clocked_us


def _rows(graph: Any, spent_s: dict[Any, float], elements: dict[Any, int]) -> tuple[NodeTime, ...]:
    """One row for each ATen operator that ran."""
    used = _used(graph)
    return tuple(
        NodeTime(
            node.name,
            str(node.target).removeprefix("aten.").split(".")[0] if node in used else "unused",
            (),
            seconds * 1e6,
            elements=elements[node],
        )
        for node, seconds in spent_s.items()
        if node.op == "call_function" and "aten" in str(node.target) and "sym_size" not in str(node.target)
    )


def _used(graph: Any) -> set[Any]:
    """Nodes that the output depends on; eager runs the others too, compilers leave them out."""
    used: set[Any] = set()
    waiting = [node for node in graph.graph.nodes if node.op == "output"]
    while waiting:
        node = waiting.pop()
        if node not in used:
            used.add(node)
            waiting += node.all_input_nodes
    return used
