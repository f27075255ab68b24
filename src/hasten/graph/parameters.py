"""Find, read and add the parameters and buffers that a graph's `get_attr` nodes stand for."""

from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node


def tensor_of(graph: GraphModule, node: Any) -> Tensor | None:
    """The parameter or buffer that a `get_attr` node reads; None for any other value."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    value: Any = graph
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value if isinstance(value, Tensor) else None


def weighted_layers(graph: GraphModule) -> list[Node]:
    """The convolutions and linear layers, in order."""
    kinds = ("conv1d", "conv2d", "conv3d", "linear")
    nodes = [n for n in graph.graph.nodes if n.op == "call_function"]
    return [n for n in nodes if str(n.target).removeprefix("aten.").split(".")[0] in kinds]


def new_parameter(graph: GraphModule, name: str, value: nn.Parameter | Tensor) -> Node:
    """Add `value` (a buffer if it is no parameter) under a free name like `name`, and a `get_attr` node for it.

    The node stands at the graph's current insertion point.
    """
    base = name.replace(".", "_")
    free, count = base, 1
    while hasattr(graph, free):
        free, count = f"{base}_{count}", count + 1
    if isinstance(value, nn.Parameter):
        graph.register_parameter(free, value)
    else:
        graph.register_buffer(free, value)
    node = graph.graph.get_attr(free)
    node.meta["val"] = value
    return node


def set_tensor(graph: GraphModule, node: Node, value: Tensor) -> None:
    """Replace the data of the parameter or buffer that a `get_attr` node reads; the shape may change."""
    owner: Any = graph
    *path, last = str(node.target).split(".")
    for part in path:
        owner = getattr(owner, part)
    old = getattr(owner, last)
    setattr(owner, last, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)


def drop_unread(graph: GraphModule) -> None:
    """Remove parameters and buffers that no node reads, so that they are not written to a file."""
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in (*graph.named_parameters(), *graph.named_buffers())]:
        if name not in read:
            owner, _, last = name.rpartition(".")
            delattr(graph.get_submodule(owner), last)
    graph.delete_all_unused_submodules()
