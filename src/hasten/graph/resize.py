"""Antialiased resizing as two matrix products, for runtimes whose own operator leaves the antialiasing out.

Resizing is linear and separable: [..., H, W] becomes R_h [H', H] @ x @ R_w [W, W'], with the operator's own weights as
matrices. Exact on every runtime, at (H' H W + H' W W') multiply-accumulates per channel.
"""

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from hasten.errors import Unsupported
from hasten.graph.duplicate import duplicate
from hasten.graph.parameters import new_parameter

aten = torch.ops.aten

_ANTIALIASED = {
    aten._upsample_bilinear2d_aa.default,
    aten._upsample_bilinear2d_aa.vec,
    aten._upsample_bicubic2d_aa.default,
    aten._upsample_bicubic2d_aa.vec,
}


def resize_by_products(graph: GraphModule) -> GraphModule:
    """`graph` with every antialiased resize [N, C, H, W] replaced by two products; itself when it has none.

    Raises:
        Unsupported: A resize has a size that is not known.
    """
    if not any(node.target in _ANTIALIASED for node in graph.graph.nodes):
        return graph
    changed = duplicate(graph)
    for node in list(changed.graph.nodes):
        if node.target in _ANTIALIASED:
            _replace(changed, node)
    changed.graph.eliminate_dead_code()
    changed.recompile()
    return changed


def _replace(graph: GraphModule, node: Node) -> None:
    source = node.args[0]
    assert isinstance(source, Node)
    old, new = source.meta["val"].shape[-2:], node.meta["val"].shape[-2:]
    if not all(isinstance(size, int) for size in (*old, *new)):
        raise Unsupported(
            f"An antialiased resize must have known sizes here, but {node.name} goes from {old} to {new}."
        )
    heights, widths = _scales(node)
    rows = _resized(node, old[0], (new[0], old[0]), (heights, None))
    columns = _resized(node, old[1], (old[1], new[1]), (None, widths))
    with graph.graph.inserting_before(node):
        left = new_parameter(graph, f"{node.name}_rows", rows)
        right = new_parameter(graph, f"{node.name}_columns", columns)
        # The smaller intermediate first.
        wide = graph.graph.call_function(aten.matmul.default, (source, right))
        result = graph.graph.call_function(aten.matmul.default, (left, wide))
    result.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(result)
    graph.graph.erase_node(node)


def _scales(node: Node) -> tuple[float | None, float | None]:
    """The scale factors that the operator was called with; None: those of the sizes."""
    if node.target in (aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.vec):
        height, width = node.args[3] or (None, None)  # type: ignore[misc]
        return height, width  # type: ignore[return-value]
    height, width = (*node.args[3:5], None, None)[:2]
    return height, width  # type: ignore[return-value]


def _resized(node: Node, size: int, output: tuple[int, int], scales: tuple[float | None, float | None]) -> Tensor:
    """What the operator makes of an identity [size, size] along one dimension: the matrix of its weights."""
    operator = aten._upsample_bicubic2d_aa if "bicubic" in str(node.target) else aten._upsample_bilinear2d_aa
    found: Tensor = operator.default(torch.eye(size)[None, None], output, bool(node.args[2]), *scales)
    return found[0, 0].contiguous()
