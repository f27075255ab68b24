"""Write a convolution's `padding="same"` in numbers, so that whatever knows `aten.conv2d` knows it too."""

from typing import Any

import torch
from torch.fx import GraphModule, Node

from hasten.graph.parameters import tensor_of

aten = torch.ops.aten

# By the operator with a named padding: the one with numbers, and its dimensions.
_NUMBERED = {
    aten.conv1d.padding: (aten.conv1d.default, 1),
    aten.conv2d.padding: (aten.conv2d.default, 2),
    aten.conv3d.padding: (aten.conv3d.default, 3),
}
_PADDING, _DILATION = 4, 5


def number_paddings(graph: GraphModule) -> None:
    """Replace the names of paddings by numbers, in place; one side of an even kernel is longer: its name stays."""
    changed = False
    for node in graph.graph.nodes:
        if node.target not in _NUMBERED:
            continue
        target, dimensions = _NUMBERED[node.target]
        defaults = (None, None, None, [1] * dimensions, "valid", [1] * dimensions)
        node.args += defaults[len(node.args) :]
        if (numbers := _padding(graph, node)) is not None:
            node.target = target
            node.update_arg(_PADDING, numbers)
            changed = True
    if changed:
        graph.recompile()


def _padding(graph: GraphModule, node: Node) -> list[int] | None:
    weight = tensor_of(graph, node.args[1])
    if weight is None:
        return None
    sizes = weight.shape[2:]
    if node.args[_PADDING] == "valid":
        return [0] * len(sizes)
    dilation: Any = node.args[_DILATION]
    given = list(dilation) * (len(sizes) // len(dilation))
    whole = [d * (size - 1) for d, size in zip(given, sizes, strict=True)]
    return None if any(total % 2 for total in whole) else [total // 2 for total in whole]
