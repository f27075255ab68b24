"""Rewrite a captured graph so that its products run on Tensor Cores: int8 from Q/DQ, fp8, 2:4 sparse."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from hasten.errors import Unsupported
from hasten.gpu import products
from hasten.graph.parameters import new_parameter, tensor_of
from hasten.quantization.fp8 import fp8_layer
from hasten.quantization.operators import PRODUCTS

aten = torch.ops.aten

# Fewer input channels leave most of a tile of the matrix unit empty.
_MIN_CHANNELS = 16
_FP8_MULTIPLE = 16
_SPARSE_MULTIPLE = 16
# By operator, how many of its first arguments are factors.
_FACTORS: dict[Any, int] = dict.fromkeys(PRODUCTS, 2) | {aten.scaled_dot_product_attention.default: 3}


def lower_integers(graph: GraphModule, dtype: torch.dtype) -> int:
    """Turn convolutions and linear layers between Q/DQ into integer products, in place.

    Args:
        graph: Of `Quantize`; what it cannot turn (grouped, few channels, transposed) stays float between Q/DQ.
        dtype: Of what the products give.

    Returns:
        How many layers multiply integers now.
    """
    count = 0
    for node in list(graph.graph.nodes):
        if node.target in (aten.linear.default, aten.conv2d.default):
            count += _lower_integer(graph, node, dtype)
    return _finished(graph, count)


def _lower_integer(graph: GraphModule, node: Node, dtype: torch.dtype) -> bool:
    source: Any = _dequantize(node.args[0], "per_tensor")
    weight: Any = _dequantize(node.args[1], "per_channel")
    if source is None or weight is None:
        return False
    integers, scale, zeros = (tensor_of(graph, weight.args[i]) for i in (0, 1, 2))
    bias = _bias_of(graph, node.args[2] if len(node.args) > 2 else None)
    if integers is None or scale is None or integers.dtype != torch.int8 or weight.args[3] != 0:
        return False
    if (zeros is not None and bool(zeros.any())) or bias is False:
        return False
    is_convolution = node.target == aten.conv2d.default
    if is_convolution and not _takes_convolution(node, integers):
        return False
    _, step, zero_point = source.args[:3]
    unsigned = source.args[5] == torch.uint8
    zero_point = zero_point - 128 if unsigned else zero_point
    scales = scale.float() * step
    sums = integers.reshape(len(integers), -1).to(torch.int64).sum(1)
    offset = -zero_point * sums * scales.double() + (0.0 if bias is None else bias.double())
    values = integers.permute(0, 2, 3, 1).contiguous() if is_convolution else integers
    with graph.graph.inserting_before(node):
        q = graph.graph.call_function(_signed, (source.args[0],)) if unsigned else source.args[0]
        constants = [
            new_parameter(graph, f"{node.name}_{name}", value)
            for name, value in (("integers", values), ("scales", scales), ("offset", offset.float()))
        ]
        rest = (*_geometry(node), zero_point) if is_convolution else ()
        function: Any = products.int8_conv2d if is_convolution else products.int8_linear
        made = graph.graph.call_function(function, (q, *constants, *rest, dtype))
    node.replace_all_uses_with(made)
    return True


def round_in_float32(graph: GraphModule) -> None:
    """Replace the quantize operators, which take float32 alone, by arithmetic that takes halves too; in place."""
    for node in list(graph.graph.nodes):
        if str(node.target) == "quantized_decomposed.quantize_per_tensor.default":
            source, scale, *rest = node.args
            with graph.graph.inserting_before(node):
                # One element, not a scalar: only then does a product with a half become float32.
                inverse = new_parameter(graph, f"{node.name}_inverse", torch.tensor([1.0 / scale]))
                made = graph.graph.call_function(_rounded, (source, inverse, *rest))
            node.replace_all_uses_with(made)
    _finished(graph, 0)


def meet_in(graph: GraphModule, dtype: torch.dtype) -> None:
    """Bring the factors of every product of values to `dtype`, in place, as autocast would.

    What an integer or fp8 layer gives is of this type already, but what was added on the way, such as a mask, made it
    float32 again, and PyTorch multiplies equal types alone.
    """
    for node in list(graph.graph.nodes):
        if node.target in _FACTORS:
            factors = [x for x in node.args[: _FACTORS[node.target]] if isinstance(x, Node)]
            with graph.graph.inserting_before(node):
                for x in factors:
                    cast = graph.graph.call_function(aten._to_copy.default, (x,), {"dtype": dtype})
                    node.replace_input_with(x, cast)
    _finished(graph, 0)


def _rounded(x: Tensor, inverse: Tensor, zero_point: int, low: int, high: int, dtype: torch.dtype) -> Tensor:
    return (torch.round(x * inverse) + zero_point).clamp(low, high).to(dtype)


def _signed(q: Tensor) -> Tensor:
    """Matrix units multiply signed bytes."""
    return (q.to(torch.int16) - 128).to(torch.int8)


def _dequantize(node: Any, kind: str) -> Node | None:
    found = isinstance(node, Node) and str(node.target) == f"quantized_decomposed.dequantize_{kind}.default"
    return node if found else None


def _bias_of(graph: GraphModule, node: Any) -> Any:
    """The bias in float64, None if there is none, False if it is computed."""
    if node is None:
        return None
    behind = _dequantize(node, "per_channel")
    if behind is None:
        value = tensor_of(graph, node)
        return False if value is None else value.detach().double()
    integers, scale = tensor_of(graph, behind.args[0]), tensor_of(graph, behind.args[1])
    return False if integers is None or scale is None else integers.double() * scale.double()


def _takes_convolution(node: Node, weight: Tensor) -> bool:
    groups = node.args[6] if len(node.args) > 6 else 1
    return bool(groups == 1) and weight.shape[1] >= _MIN_CHANNELS


def _geometry(node: Node) -> tuple[list[int], list[int], list[int]]:
    """Stride, padding and dilation of a convolution, two numbers each."""
    defaults: tuple[Any, ...] = ([1, 1], [0, 0], [1, 1])
    given: list[Any] = [node.args[3 + i] if len(node.args) > 3 + i else defaults[i] for i in range(3)]
    stride, padding, dilation = (list(v) * (2 // len(v)) for v in given)
    return stride, padding, dilation


def lower_fp8(graph: GraphModule) -> int:
    """Turn linear layers whose sizes are multiples of 16 into fp8 products, in place; returns how many.

    Raises:
        Unsupported: There is none.
    """
    count = 0
    for node in list(graph.graph.nodes):
        weight = tensor_of(graph, node.args[1]) if node.target == aten.linear.default else None
        if weight is None or any(n % _FP8_MULTIPLE for n in weight.shape):
            continue
        values, scale = products.fp8_weight(weight.detach())
        with graph.graph.inserting_before(node):
            constants = [new_parameter(graph, f"{node.name}_{n}", v) for n, v in (("fp8", values), ("scale", scale))]
            bias = node.args[2] if len(node.args) > 2 else None
            made = graph.graph.call_function(products.fp8_linear, (node.args[0], *constants, bias))
        node.replace_all_uses_with(made)
        count += 1
    if not count:
        raise Unsupported("fp8 needs a linear layer whose sizes are multiples of 16, but the graph has none.")
    return _finished(graph, count)


def lower_fp8_layers(graph: GraphModule, dtype: torch.dtype) -> int:
    """Turn linear layers of `Quantize(weights="fp8", activations="fp8")` into fp8 products, in place; returns how many.

    Convolutions, and linear layers whose sizes are not multiples of 16, multiply floats that are rounded to fp8.

    Args:
        graph: A captured graph.
        dtype: Of what the products give; their sums are rounded to bfloat16 before.
    """
    count = 0
    for node in list(graph.graph.nodes):
        layer = fp8_layer(graph, node) if node.target == aten.linear.default else None
        if layer is None or any(n % _FP8_MULTIPLE for n in layer.weight.shape):
            continue
        named = {
            "factor": torch.full((1, 1), layer.scale, device=layer.weight.device),
            "values": layer.weight,
            "row": layer.weight_scale[None].contiguous(),
        }
        with graph.graph.inserting_before(node):
            constants = [new_parameter(graph, f"{node.name}_{name}", value) for name, value in named.items()]
            bias = node.args[2] if len(node.args) > 2 else None
            product = graph.graph.call_function(products.fp8_product, (layer.rounded, *constants, bias))
            made = graph.graph.call_function(aten._to_copy.default, (product,), {"dtype": dtype})
        node.replace_all_uses_with(made)
        count += 1
    return _finished(graph, count)


def lower_sparse(graph: GraphModule, dtype: torch.dtype) -> int:
    """Turn linear layers whose weights are 2:4 sparse into sparse products, in place; returns how many.

    Raises:
        Unsupported: There is none; `PruneWeights` makes them.
    """
    count = 0
    for node in list(graph.graph.nodes):
        weight = tensor_of(graph, node.args[1]) if node.target == aten.linear.default else None
        if weight is None or any(n % _SPARSE_MULTIPLE for n in weight.shape) or not products.is_two_four(weight):
            continue
        packed = torch._cslt_compress(weight.detach().to(dtype).contiguous())
        with graph.graph.inserting_before(node):
            constant = new_parameter(graph, f"{node.name}_sparse", packed)
            bias = node.args[2] if len(node.args) > 2 else None
            made = graph.graph.call_function(products.sparse_linear, (node.args[0], constant, bias))
        node.replace_all_uses_with(made)
        count += 1
    if not count:
        raise Unsupported(
            "Sparse products need a linear layer with sizes of multiples of 16 and at most 2 of every 4 weights not "
            "zero, but the graph has none. Apply PruneWeights with scope='2:4' first."
        )
    return _finished(graph, count)


def _finished(graph: GraphModule, count: int) -> int:
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return count
