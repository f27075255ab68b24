"""Multiply-accumulates and bytes of every node of a captured graph, per sample, and how many of them can be pruned."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from hasten.graph.channels import Channels, attribute
from hasten.graph.duplicate import duplicate
from hasten.graph.rules.call import arguments, shapes_of
from hasten.graph.surgery import refresh_shapes

_INTERFACE = {"it is an input of the model", "it is an output of the model", "it has one position"}
_NEVER_CHANNELS = {"it is not a channel dimension", "its size is symbolic", "attention normalises over it"}


@dataclass(frozen=True)
class NodeCost:
    """Cost of one node for one sample.

    Attributes:
        macs: Multiply-accumulates of convolutions, linear layers, matrix products, attention, recurrence; else 0.
        size_bytes: Bytes of all tensors it reads (parameters too) and writes.
    """

    macs: int
    size_bytes: int


@dataclass(frozen=True)
class Reach:
    """How many multiply-accumulates of a model pruning can reach, per sample.

    Attributes:
        macs: All of them.
        fixed_macs: In nodes between the model's inputs and outputs alone, whose sizes are given from outside.
        exact_macs: In nodes that some exact unit shrinks.
        approximate_macs: In nodes that only approximate units shrink.
    """

    macs: int
    fixed_macs: int
    exact_macs: int
    approximate_macs: int


def node_costs(graph: GraphModule) -> dict[str, NodeCost]:
    """Cost of every node that computes, by its name; symbolic sizes count as 1."""
    costs = {}
    graph = _with_shapes(graph)
    for node in graph.graph.nodes:
        if node.op == "call_function" and (any(shapes_of(node)) or isinstance(node.meta.get("val"), Tensor)):
            tensors = [*node.all_input_nodes, node]
            costs[node.name] = NodeCost(_macs(node), sum(_size_bytes(graph, t) for t in tensors))
    return costs


def _with_shapes(graph: GraphModule) -> GraphModule:
    """The graph, or where quantizing put in nodes without shapes, a copy that has them."""
    if all("val" in node.meta for node in graph.graph.nodes if node.op == "call_function"):
        return graph
    copy = duplicate(graph, share_tensors=True)
    refresh_shapes(copy)
    return copy


def total_macs(graph: GraphModule) -> int:
    """Multiply-accumulates of the whole graph for one sample."""
    return sum(cost.macs for cost in node_costs(graph).values())


def parameter_count(graph: GraphModule) -> int:
    """Number of parameters, a shared one once."""
    return sum(p.numel() for p in graph.parameters())


def reach(channels: Channels) -> Reach:
    """Which multiply-accumulates the units of `channels` can remove."""
    exact = {u.id for g in channels.groups if not g.approximate for u in g.units}
    inexact = {u.id for g in channels.groups if g.approximate for u in g.units}
    reasons = channels.relations.reasons()
    counts = dict.fromkeys(("all", "fixed", "exact", "approximate"), 0)
    costs = node_costs(channels.graph)
    for node in channels.graph.graph.nodes:
        macs = costs[node.name].macs if node.name in costs and node.name in channels.axes else 0
        if not macs:
            continue
        counts["all"] += macs
        axes = [a for n in [*node.all_input_nodes, node] for a in _flat(channels.axes.get(n.name))]
        units = {u for a in axes for found in channels.solution.units(a) for u in found}
        if units & exact:
            counts["exact"] += macs
        elif units & inexact:
            counts["approximate"] += macs
        elif all(_given(reasons[p]) for a in axes if not a.is_frozen for p in a.positions):
            counts["fixed"] += macs
    return Reach(counts["all"], counts["fixed"], counts["exact"], counts["approximate"])


def _given(reasons: frozenset[str]) -> bool:
    """Whether a frozen position is so because of the model's inputs or outputs, or is no channel at all."""
    return bool(reasons & _INTERFACE) or (bool(reasons) and reasons <= _NEVER_CHANNELS)


def _flat(axes: Any) -> list[Any]:
    each = axes if isinstance(axes, list) else [axes or ()]
    return [axis for one in each for axis in one]


def _size(value: Any) -> int:
    if isinstance(value, torch.SymInt):
        expression: Any = value.node.expr
        return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))
    return int(value)


def _sizes(value: Any) -> list[int]:
    shape = shapes_of(value)[0] if isinstance(value, Node) else ()
    return [_size(n) for n in shape]


def _size_bytes(graph: GraphModule, node: Node) -> int:
    if node.op == "get_attr":
        found = attribute(graph, str(node.target))
        return found.numel() * found.element_size() if isinstance(found, Tensor) else 0
    value = node.meta.get("val")
    tensors = [v for v in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(v, Tensor)]
    return sum(math.prod(_size(n) for n in t.shape) * t.element_size() for t in tensors)


def _macs(node: Node) -> int:
    name = str(node.target).removeprefix("aten.").split(".")[0]
    count = _COUNTS.get(name)
    return count(arguments(node), math.prod(_sizes(node))) if count else 0


def _linear(given: dict[str, Any], out: int) -> int:
    return out * _sizes(given["weight"])[-1]


def _convolution(given: dict[str, Any], out: int) -> int:
    return out * math.prod(_sizes(given["weight"])[1:])


def _transposed(given: dict[str, Any], out: int) -> int:
    del out
    return math.prod(_sizes(given["input"])) * math.prod(_sizes(given["weight"])[1:])


def _product(given: dict[str, Any], out: int) -> int:
    tensors = [v for v in given.values() if isinstance(v, Node) and len(_sizes(v)) > 0]
    left = tensors[-2] if len(tensors) > 1 else tensors[0]
    return out * _sizes(left)[-1]


def _attention(given: dict[str, Any], out: int) -> int:
    query, keys = _sizes(given["query"]), _sizes(given["key"])[-2]
    return math.prod(query) * keys + out * keys


def _recurrent(given: dict[str, Any], out: int) -> int:
    del out
    weights = [math.prod(_sizes(p)) for p in given["params"] if len(_sizes(p)) == 2]
    steps = math.prod(_sizes(given["input"])[:-1])
    return steps * sum(weights)


def _einsum(given: dict[str, Any], out: int) -> int:
    del out
    letters = given["equation"].replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for names, tensor in zip(letters, given["tensors"], strict=True):
        if "." in names:
            return 0
        sizes |= dict(zip(names, _sizes(tensor), strict=True))
    return math.prod(sizes.values())


_COUNTS = (
    {"linear": _linear, "einsum": _einsum, "scaled_dot_product_attention": _attention}
    | dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution)
    | dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed)
    | dict.fromkeys(("matmul", "mm", "bmm", "addmm", "baddbmm", "mv", "dot"), _product)
    | dict.fromkeys(("gru", "lstm", "rnn_tanh", "rnn_relu"), _recurrent)
)
