"""Put integers behind a dequantize operator in the place of a graph's float weights."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from hasten.graph.parameters import new_parameter, tensor_of
from hasten.quantization import linear, logarithmic
from hasten.quantization.operators import CONVOLUTIONS
from hasten.quantization.torchao import DEQUANTIZE_PER_CHANNEL

aten = torch.ops.aten

Rounder = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A weight to its integers (int8, [blocks, length]) and their scales (float32, [blocks])."""


def rounder(scheme: str, bits: int, group: int | None) -> Rounder:
    """How weights are rounded: "linear" at up to 8 bits per channel or group, "power_of_two" at up to 4 per channel."""
    if scheme == "power_of_two":
        return lambda weight: _powers(weight, bits)

    def round_linearly(weight: Tensor) -> tuple[Tensor, Tensor]:
        length = weight[0].numel()
        by_group = group is not None and length % group == 0
        found = linear.quantize(
            weight, bits, symmetric=True, granularity="group" if by_group else "channel", group=group or length
        )
        return found.integers, found.scale[:, 0]

    return round_linearly


def replace_weights(graph: GraphModule, round_weight: Rounder, keep_float: frozenset[str]) -> int:
    """Replace the weights of convolutions and linear layers in place; returns how many layers read integers now."""
    count = 0
    for layer in list(graph.graph.nodes):
        if layer.target not in CONVOLUTIONS and layer.target != aten.linear.default:
            continue
        weight = tensor_of(graph, layer.args[1])
        if weight is None or layer.name in keep_float:
            continue
        integers, scale = round_weight(weight.detach())
        layer.update_arg(1, _dequantized(graph, layer, integers, scale, weight.shape))
        count += 1
    graph.graph.eliminate_dead_code()
    _drop_unread(graph)
    graph.recompile()
    return count


def _dequantized(graph: GraphModule, layer: Node, integers: Tensor, scale: Tensor, shape: torch.Size) -> Node:
    """Per channel in the weight's own shape, per group as [groups, length] and a reshape."""
    per_channel = len(scale) == shape[0]
    name = f"{layer.args[1]}_integers"
    with graph.graph.inserting_before(layer):
        q = new_parameter(graph, name, integers.reshape(shape) if per_channel else integers)
        scales = new_parameter(graph, f"{name}_scale", scale)
        zeros = new_parameter(graph, f"{name}_zero_point", torch.zeros(len(scale), dtype=torch.int64))
        arguments = (q, scales, zeros, 0, -127, 127, torch.int8)
        weight = graph.graph.call_function(DEQUANTIZE_PER_CHANNEL, arguments)
        return weight if per_channel else graph.graph.call_function(aten.reshape.default, (weight, list(shape)))


def _powers(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Powers of two as integers 1, 2, 4, ... 64 with a sign, and a power of two as their scale: exact in int8."""
    found = logarithmic.quantize(weight, bits, base="2", per_channel=True)
    levels = 2 ** (bits - 1) - 1
    integers = found.sign.long() << (levels - 1 - found.code.long())
    scale = 2.0 ** (found.top - (levels - 1)).double()
    # A channel of zeros has no largest power.
    silent = (found.sign == 0).reshape(len(weight), -1).all(1)
    return integers.to(torch.int8).reshape(len(weight), -1), torch.where(silent, 1.0, scale).float()


def _drop_unread(graph: GraphModule) -> None:
    """Remove parameters that no node reads any more, so that they are not written to the file."""
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for name, _ in list(graph.named_parameters()):
        if name not in read:
            owner, _, last = name.rpartition(".")
            delattr(graph.get_submodule(owner), last)
    graph.delete_all_unused_submodules()
