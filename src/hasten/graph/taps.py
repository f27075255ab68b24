"""Read intermediate values of a graph: as further outputs, or once by name."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from hasten.errors import InvalidInput, unknown
from hasten.graph.capture import outputs
from hasten.graph.duplicate import duplicate
from hasten.task import Inputs


def tap(graph: GraphModule, names: Sequence[str]) -> GraphModule:
    """A copy of `graph` that returns its own outputs followed by the values of the nodes called `names`, flat.

    Raises:
        InvalidInput: There is no node of that name.
    """
    tapped = duplicate(graph)
    nodes = {node.name: node for node in tapped.graph.nodes}
    for name in names:
        if name not in nodes:
            raise unknown("A node", name, nodes)
    return with_outputs(tapped, [*outputs(tapped), *(nodes[name] for name in names)])


def untap(graph: GraphModule, count: int) -> GraphModule:
    """Let a tapped graph return its first `count` outputs again; works in place on a graph nobody else holds."""
    return with_outputs(graph, outputs(graph)[:count])


def with_outputs(graph: GraphModule, nodes: Sequence[Node]) -> GraphModule:
    """Make `graph` return `nodes`: the tensor itself if there is one, else a flat tuple. In place."""
    result = nodes[0] if len(nodes) == 1 else tuple(nodes)
    codegen: Any = graph.graph._codegen
    _, spec = pytree.tree_flatten(result)
    # The generated forward flattens what the output node holds, so that holds the flat list and the spec the form.
    graph.graph.output_node().args = (tuple(nodes),)
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=spec)
    graph._out_spec = spec
    graph.recompile()
    return graph


def values(graph: GraphModule, example: Inputs, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The tensors that the nodes called `names` (default: all) take for `example`, computed without gradient."""
    wanted = None if names is None else set(names)
    found: dict[str, Tensor] = {}

    class Recorder(Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor) and n.op != "output" and (wanted is None or n.name in wanted):
                found[n.name] = result
            return result

    with torch.no_grad():
        Recorder(graph).run(*example)
    if wanted is not None and (absent := wanted - set(found)):
        raise InvalidInput(f"Nodes must give a tensor to be read, but these do not: {sorted(absent)}.")
    return found
