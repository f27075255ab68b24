"""Average pooling that counts its padding as a convolution of ones, for a runtime that pads integers wrongly.

OpenVINO moves dequantization behind such a pooling and then pads the integers with 0, which stands for 0 only where the
zero point is 0: behind a convolution whose outputs take both signs the answers are wrong by as much as they are large.
Its convolutions pad with the zero point. It merges a padding in front of the pooling into the pooling again.
"""

import math
from typing import Any

import torch
from torch.fx import GraphModule, Node

from hasten.errors import Unsupported
from hasten.graph.duplicate import duplicate
from hasten.graph.parameters import new_parameter
from hasten.quantization.torchao import DEQUANTIZE_PER_CHANNEL

aten = torch.ops.aten

_CONVOLUTIONS: dict[Any, tuple[int, Any]] = {
    aten.avg_pool1d.default: (1, aten.conv1d.default),
    aten.avg_pool2d.default: (2, aten.conv2d.default),
    aten.avg_pool3d.default: (3, aten.conv3d.default),
}
_DEFAULTS: tuple[Any, ...] = (None, None, [], 0, False, True, None)


def averages_as_convolutions(graph: GraphModule) -> GraphModule:
    """`graph` with its padded average poolings as depthwise convolutions of int8 ones, which compute the same numbers.

    A copy, or `graph` itself where nothing is quantized or no pooling counts its padding.

    Raises:
        Unsupported: Such a pooling rounds its sizes up, or its channels are not known.
    """
    if not any(".dequantize_per_tensor" in str(n.target) for n in graph.graph.nodes):
        return graph
    if not any(_counts_padding(node) for node in graph.graph.nodes):
        return graph
    changed = duplicate(graph)
    for node in [n for n in changed.graph.nodes if _counts_padding(n)]:
        _replace(changed, node)
    changed.graph.eliminate_dead_code()
    changed.recompile()
    return changed


def _arguments(node: Node) -> list[Any]:
    given = [*node.args, *_DEFAULTS[len(node.args) :]]
    dimensions, _ = _CONVOLUTIONS[node.target]
    for index in (1, 2, 3):
        values = given[index] if isinstance(given[index], (list, tuple)) else [given[index]]
        given[index] = list(values) * (dimensions if len(values) == 1 else 1)
    return given


def _counts_padding(node: Node) -> bool:
    if node.target not in _CONVOLUTIONS:
        return False
    _, _, _, padding, _, counted, _ = _arguments(node)
    return any(padding) and bool(counted)


def _replace(graph: GraphModule, node: Node) -> None:
    source, kernel, stride, padding, rounds_up, _, divisor = _arguments(node)
    channels = node.meta["val"].shape[1]
    if rounds_up or not isinstance(channels, int):
        raise Unsupported(
            "An average pooling over integers must round its sizes down and have a known number of channels for "
            f"OpenVINO, but {node.name} does not. Keep the layers around it in float."
        )
    ones = torch.ones(channels, 1, *kernel, dtype=torch.int8)
    share = torch.full((channels,), 1 / (divisor or math.prod(kernel)))
    zeros = torch.zeros(channels, dtype=torch.int64)
    with graph.graph.inserting_before(node):
        named = (("ones", ones), ("share", share), ("zeros", zeros))
        constants = [new_parameter(graph, f"{node.name}_{name}", value) for name, value in named]
        weight = graph.graph.call_function(DEQUANTIZE_PER_CHANNEL, (*constants, 0, -127, 127, torch.int8))
        steps = [1] * len(kernel)
        arguments = (source, weight, None, stride or kernel, padding, steps, channels)
        made = graph.graph.call_function(_CONVOLUTIONS[node.target][1], arguments)
    made.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(made)
