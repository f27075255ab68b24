"""Q/DQ in the form that signed integer kernels read: int8 activations, float biases; the same numbers throughout."""

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from hasten.graph.duplicate import duplicate
from hasten.graph.layers import LAYERS
from hasten.graph.parameters import new_parameter, tensor_of

aten = torch.ops.aten

_Q = "quantized_decomposed."
_CLAMPS = {aten.relu.default, aten.hardtanh.default, aten.relu6.default, aten.clamp.default, aten.clamp_min.default}


def signed_integers(graph: GraphModule) -> GraphModule:
    """A copy with uint8 activations shifted by 128 to int8, and int32 biases as the floats they stand for.

    q - zero_point is unchanged when both are 128 less, so no number differs. Kernels that take float biases round them
    to the same integers again.
    """
    made = duplicate(graph)
    for node in list(made.graph.nodes):
        if _is(node, "quantize_per_tensor") and all(_is(user, "dequantize_per_tensor") for user in node.users):
            for part in (node, *node.users):
                _shift(part)
        elif _is(node, "dequantize_per_channel") and node.args[-1] == torch.int32:
            _to_float(made, node)
    made.graph.eliminate_dead_code()
    made.recompile()
    return made


def unrounded_weights_to_float(graph: GraphModule) -> int:
    """Store the weights of layers whose results are not rounded as floats, in place; returns how many.

    For runtimes whose integer layers must end in integers: such a layer multiplies floats there in any case.
    """
    count = 0
    for node in list(graph.graph.nodes):
        if node.target in LAYERS and not _rounded(node):
            for source in node.all_input_nodes:
                if _is(source, "dequantize_per_channel"):
                    _to_float(graph, source)
                    count += 1
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return count


def _rounded(node: Node) -> bool:
    users = [after for user in node.users for after in (user.users if user.target in _CLAMPS else (user,))]
    return bool(users) and all(_is(user, "quantize_per_tensor") for user in users)


def _is(node: Node, name: str) -> bool:
    return str(node.target) == f"{_Q}{name}.default"


def _shift(node: Node) -> None:
    source, scale, zero_point, low, high, dtype = node.args
    if dtype == torch.uint8:
        numbers = [value - 128 for value in (zero_point, low, high) if isinstance(value, int)]
        node.args = (source, scale, *numbers, torch.int8)


def _to_float(graph: GraphModule, node: Node) -> None:
    integers, scale = tensor_of(graph, node.args[0]), tensor_of(graph, node.args[1])
    if not isinstance(integers, Tensor) or not isinstance(scale, Tensor):
        return
    # In float32, as the operator itself computes.
    value = integers.float() * scale.float().reshape(-1, *[1] * (integers.ndim - 1))
    with graph.graph.inserting_before(node):
        node.replace_all_uses_with(new_parameter(graph, f"{node.name}_float", value))
