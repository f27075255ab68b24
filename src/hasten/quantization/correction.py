"""Compare every layer of a graph with its rounded self and shift its bias by the mean difference."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from hasten.graph.parameters import set_tensor, tensor_of
from hasten.quantization import affine
from hasten.quantization.operators import CONVOLUTIONS
from hasten.task import Inputs

aten = torch.ops.aten


def correct_biases(graph: GraphModule, batches: Sequence[Inputs], weight_bits: int) -> int:
    """Shift biases in place, so that rounding the weights leaves every layer's mean output as it was.

    Args:
        graph: Float graph in inference form; its weights stay in float.
        batches: Calibration batches; every layer is measured on all of them.
        weight_bits: Bits that the weights will be rounded to, per channel and symmetric.

    Returns:
        How many layers were corrected.
    """
    layers = [n for n in graph.graph.nodes if _has_bias(graph, n)]
    rounded = {n: round_per_channel(_weight(graph, n), weight_bits) for n in layers}
    shifts = _mean_shifts(graph, rounded, batches)
    for layer in layers:
        bias = layer.args[2]
        assert isinstance(bias, Node)
        values = tensor_of(graph, bias)
        assert values is not None
        set_tensor(graph, bias, (values + shifts[layer]).detach())
    return len(layers)


def round_per_channel(weight: Tensor, bits: int) -> Tensor:
    """`weight` rounded to symmetric integers per slice of dimension 0, back in float."""
    top = 2 ** (bits - 1) - 1
    bound = weight.detach().abs().flatten(1).amax(1).view(-1, *[1] * (weight.ndim - 1))
    scale, zero = affine.parameters(-bound, bound, -top, top, True)
    return affine.dequantize(affine.quantize(weight.detach(), scale, zero, -top, top), scale, zero)


def _mean_shifts(graph: GraphModule, rounded: dict[Node, Tensor], batches: Sequence[Inputs]) -> dict[Node, Tensor]:
    """Mean over samples and positions of what rounding takes from every output channel.

    One pass: a layer's input is that of the float network, and the shift of a linear operator is linear in it.
    """
    total: dict[Node, Tensor] = {}
    count: dict[Node, int] = {}

    class Compare(Interpreter):
        def run_node(self, n: Node) -> object:
            result = super().run_node(n)
            if n in rounded:
                args, kwargs = self.fetch_args_kwargs_from_env(n)
                lost = result - n.target(args[0], rounded[n], *args[2:], **kwargs)  # type: ignore[operator]
                axis = 1 if n.target in CONVOLUTIONS else lost.ndim - 1
                sums = lost.double().sum([dim for dim in range(lost.ndim) if dim != axis])
                total[n] = total.get(n, 0) + sums
                count[n] = count.get(n, 0) + lost.numel() // lost.shape[axis]
            return result

    with torch.no_grad():
        for inputs in batches:
            Compare(graph).run(*inputs)
    return {n: (total[n] / count[n]).float() for n in rounded}


def _weight(graph: GraphModule, layer: Node) -> Tensor:
    weight = tensor_of(graph, layer.args[1])
    assert weight is not None
    return weight


def _has_bias(graph: GraphModule, node: Node) -> bool:
    if node.target not in CONVOLUTIONS and node.target != aten.linear.default:
        return False
    return len(node.args) > 2 and all(tensor_of(graph, a) is not None for a in node.args[1:3])
