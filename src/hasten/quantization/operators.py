"""Which ATen operators can run on integers, and how they treat them."""

import torch
from torch.fx import Node

aten = torch.ops.aten

PRODUCTS = frozenset({aten.matmul.default, aten.bmm.default})
ADDITIONS = frozenset({aten.add.Tensor})
AVERAGES = frozenset(
    {aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.mean.dim}
)
# Outputs are a choice of the inputs, so they keep the inputs' integers.
VALUE_PRESERVING = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.permute.default,
        aten.transpose.int,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
        aten.contiguous.default,
        aten.clone.default,
        aten.max_pool1d.default,
        aten.max_pool2d.default,
        aten.slice.Tensor,
        aten.select.int,
        aten.expand.default,
        aten.upsample_nearest2d.vec,
        aten.pixel_shuffle.default,
    }
)
CONCATENATIONS = frozenset({aten.cat.default})
ACTIVATIONS = {
    aten.relu.default: "relu",
    aten.hardtanh.default: "hardtanh",
    aten.relu6.default: "relu6",
    aten.clamp.default: "clamp",
    aten.clamp_min.default: "clamp_min",
    aten.hardswish.default: "hardswish",
    aten.silu.default: "silu",
    aten.gelu.default: "gelu",
    aten.sigmoid.default: "sigmoid",
    aten.hardsigmoid.default: "hardsigmoid",
    aten.elu.default: "elu",
    aten.leaky_relu.default: "leaky_relu",
    aten.tanh.default: "tanh",
    aten.mish.default: "mish",
}


def activation_of(node: Node) -> str | None:
    """The activation that `node` computes, None if it is none."""
    return ACTIVATIONS.get(node.target) if isinstance(node.target, torch._ops.OpOverload) else None


def pads_with_zero(node: Node) -> bool:
    """Whether `node` pads with the constant 0, which every zero point represents exactly."""
    if node.target != aten.pad.default:
        return node.target == aten.constant_pad_nd.default and (len(node.args) < 3 or node.args[2] in (0, None))
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    return bool(mode == "constant" and value in (None, 0))


def is_tensor(node: object) -> bool:
    """Whether `node` is a graph node that computes a floating-point tensor."""
    if not isinstance(node, Node):
        return False
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()
