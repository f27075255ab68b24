"""Where a captured graph can be cut in two, what would cross each cut, and the two parts as graphs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from hasten.graph.capture import as_tuple, capture_as_is, has_dynamic_batch, outputs, placeholders
from hasten.graph.cost import node_costs
from hasten.task import Inputs

# A core multiplies about this many pairs in the time that one byte takes from memory.
_MACS_PER_BYTE = 8
_MOST_CROSSING = 4


@dataclass(frozen=True)
class Cut:
    """A place between two nodes.

    Attributes:
        after: Last node of the first part, by name.
        crossing: Names of the nodes whose values the second part reads.
        crossing_bytes: Their size for one sample.
        share: Cost of the first part / cost of the graph, by the cost model, between 0 and 1.
    """

    after: str
    crossing: tuple[str, ...]
    crossing_bytes: int
    share: float


def cuts(graph: GraphModule) -> list[Cut]:
    """Every place where at most 4 tensors cross, all of them batch first, in order of the graph.

    Every node must carry its value's meta data, as in a captured graph.
    """
    batch = _batch(graph)
    nodes = _computing(graph)
    costs = node_costs(graph)
    weights = [_weight(costs.get(node.name)) for node in nodes]
    total = sum(weights) or 1
    last_use = _last_uses(nodes)
    returned = set(outputs(graph))
    found, done = [], 0
    live: list[Node] = placeholders(graph)
    for index, (node, weight) in enumerate(zip(nodes[:-1], weights, strict=False)):
        done += weight
        live = [x for x in [*live, node] if last_use.get(x, -1) > index]
        if node in returned:
            break  # what the graph returns must come out of the second part
        tensors = [x for x in live if not _is_size(x)]
        if tensors and len(tensors) <= _MOST_CROSSING and all(_is_batch_first(x, batch) for x in tensors):
            names = tuple(x.name for x in tensors)
            found.append(Cut(node.name, names, sum(_row_bytes(x) for x in tensors), done / total))
    return found


def spread(found: list[Cut], count: int) -> list[Cut]:
    """At most `count` cuts, evenly spread over the cost: in each stretch the one where the fewest bytes cross."""
    chosen = []
    for part in range(count):
        low, high = part / count, (part + 1) / count
        within = [cut for cut in found if low < cut.share <= high and cut.share < 1]
        if within:
            chosen.append(min(within, key=lambda cut: (cut.crossing_bytes, len(cut.crossing))))
    return chosen


def split_at(graph: GraphModule, cut: Cut, example: Inputs) -> tuple[GraphModule, GraphModule, Inputs]:
    """The two parts of a graph, and what crosses on `example`: the example of the second part.

    The first part returns the crossing tensors, in the order of `cut.crossing`; the second takes them. A constant, such
    as a dequantized weight, goes where it is used.

    Args:
        graph: Captured graph; not changed.
        cut: One of `cuts(graph)`.
        example: One batch of inputs of the graph.
    """
    nodes = _computing(graph)
    names = [node.name for node in nodes]
    border = names.index(cut.after) + 1
    by_name = {node.name: node for node in graph.graph.nodes}
    crossing = [by_name[name] for name in cut.crossing]
    first = _part(graph, placeholders(graph), nodes[:border], crossing)
    second = _part(graph, crossing, nodes[border:], outputs(graph))
    dynamic = has_dynamic_batch(graph)
    first = capture_as_is(first, example, dynamic=dynamic)
    with torch.no_grad():
        passed = as_tuple(first(*example))
    return first, capture_as_is(second, passed, dynamic=dynamic), passed


def _part(graph: GraphModule, inputs: list[Node], nodes: list[Node], results: list[Node]) -> GraphModule:
    made = Graph()
    copies: dict[Node, Node] = {}
    for node in inputs:
        copies[node] = made.placeholder(node.name)
        copies[node].meta = dict(node.meta)

    def copy(node: Node) -> Node:
        if node not in copies:
            if _is_size(node) and node.args[0] not in copies:  # the batch size, read from what crosses
                size = made.call_function(torch.ops.aten.sym_size.int, (copies[inputs[0]], 0))
                size.meta = dict(node.meta)
                copies[node] = size
            else:
                for source in node.all_input_nodes:
                    copy(source)
                copies[node] = made.node_copy(node, lambda x: copies[x])
        return copies[node]

    for node in nodes:
        if not _is_size(node):
            copy(node)
    returned = [copy(node) for node in results]
    made.output(returned[0] if len(returned) == 1 else tuple(returned))
    part = GraphModule(graph, made)
    part.graph.eliminate_dead_code()
    part.recompile()
    return part


def _computing(graph: GraphModule) -> list[Node]:
    """The nodes that depend on the inputs, in order; the others are constants."""
    depends: set[Node] = set(placeholders(graph))
    nodes = []
    for node in graph.graph.nodes:
        if node.op not in ("placeholder", "output") and any(source in depends for source in node.all_input_nodes):
            depends.add(node)
            nodes.append(node)
    return nodes


def _last_uses(nodes: list[Node]) -> dict[Node, int]:
    """Index of the last node that reads a value."""
    last: dict[Node, int] = {}
    for index, node in enumerate(nodes):
        for source in node.all_input_nodes:
            last[source] = index
    return last


def _weight(cost: Any) -> int:
    return 0 if cost is None else int(cost.macs + _MACS_PER_BYTE * cost.size_bytes)


def _is_size(node: Node) -> bool:
    """Whether a node reads the batch size, which both parts can do."""
    return bool(node.target == torch.ops.aten.sym_size.int and node.args[1] == 0)


def _batch(graph: GraphModule) -> Any:
    return placeholders(graph)[0].meta["val"].shape[0]


def _is_batch_first(node: Node, batch: Any) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.ndim > 0 and str(value.shape[0]) == str(batch)


def _row_bytes(node: Node) -> int:
    value: Tensor = node.meta["val"]
    count = 1
    for size in value.shape[1:]:
        count *= size if isinstance(size, int) else 1
    return count * value.element_size()
