"""Fold batch normalization in evaluation mode into the convolution or linear layer in front of it.

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", section 3.2.
"""

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from hasten.graph.parameters import new_parameter, tensor_of

aten = torch.ops.aten

# The output channels' axis in the weight of each operator that can take a batch norm.
_WEIGHT_AXIS = {
    aten.conv1d.default: 0,
    aten.conv2d.default: 0,
    aten.conv3d.default: 0,
    aten.linear.default: 0,
    aten.conv_transpose1d.default: 1,
    aten.conv_transpose2d.input: 1,
    aten.conv_transpose3d.input: 1,
}
_GROUPS_ARGUMENT = {
    aten.conv_transpose1d.default: 6,
    aten.conv_transpose2d.input: 6,
    aten.conv_transpose3d.input: 6,
}


def fold_batch_norm(graph: GraphModule) -> int:
    """Fold every batch norm that directly follows a weighted operator, in place; returns how many were folded.

    Batch norms in training mode, or behind anything else, stay.
    """
    folded = 0
    for node in list(graph.graph.nodes):
        if node.target == aten.batch_norm.default and _can_fold(graph, node):
            _fold(graph, node)
            folded += 1
    if folded:
        graph.graph.eliminate_dead_code()
        graph.delete_all_unused_submodules()
        graph.recompile()
    return folded


def _can_fold(graph: GraphModule, norm: Node) -> bool:
    layer, training = norm.args[0], norm.args[5]
    if not isinstance(layer, Node) or layer.target not in _WEIGHT_AXIS or len(layer.users) > 1 or training:
        return False
    position = _GROUPS_ARGUMENT.get(layer.target)
    if position is not None and len(layer.args) > position and layer.args[position] != 1:
        return False
    # Batch norm normalizes dimension 1, a linear layer's features are the last: equal for matrices only.
    value = layer.meta.get("val")
    is_matrix = value is not None and value.ndim == 2
    constants = [layer.args[1], *norm.args[3:5], *(a for a in norm.args[1:3] if a is not None)]
    return (layer.target != aten.linear.default or is_matrix) and all(
        tensor_of(graph, c) is not None for c in constants
    )


def _fold(graph: GraphModule, norm: Node) -> None:
    layer = norm.args[0]
    assert isinstance(layer, Node)
    weight = tensor_of(graph, layer.args[1])
    mean, variance = tensor_of(graph, norm.args[3]), tensor_of(graph, norm.args[4])
    assert weight is not None
    assert mean is not None
    assert variance is not None
    gain, shift = _or(tensor_of(graph, norm.args[1]), torch.ones_like(mean)), tensor_of(graph, norm.args[2])
    bias = tensor_of(graph, layer.args[2]) if len(layer.args) > 2 else None
    eps = norm.args[7]
    assert isinstance(eps, float)
    with torch.no_grad():
        # Double precision: the fold happens once, and its rounding would otherwise be a step of its own.
        ratio = gain.double() / (variance.double() + eps).sqrt()
        axis = _WEIGHT_AXIS[layer.target]  # type: ignore[index]
        shape = [-1 if dim == axis else 1 for dim in range(weight.ndim)]
        folded_weight = (weight.double() * ratio.view(shape)).to(weight.dtype)
        offset = _or(bias, torch.zeros_like(mean)).double() - mean.double()
        folded_bias = (offset * ratio + _or(shift, torch.zeros_like(mean)).double()).to(weight.dtype)
    with graph.graph.inserting_before(layer):
        name = str(layer.args[1].target)  # type: ignore[union-attr]
        weight_node = new_parameter(graph, f"{name}_folded", nn.Parameter(folded_weight))
        bias_node = new_parameter(graph, f"{name}_bias_folded", nn.Parameter(folded_bias))
    rest = layer.args[3:]
    layer.args = (layer.args[0], weight_node, bias_node, *rest)
    norm.replace_all_uses_with(layer)
    graph.graph.erase_node(norm)


def _or(tensor: Tensor | None, default: Tensor) -> Tensor:
    return default if tensor is None else tensor
