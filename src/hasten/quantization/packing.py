"""Turn products with dequantized weights into the packed kernels that ONNX Runtime and OpenVINO have for them.

The graph stays the one representation: there a weight is integers behind a dequantize operator. In an ONNX file that
would be widened to float in memory or at every call, so the writer asks for com.microsoft's MatMulNBits instead, which
keeps 4 or 8 bits per weight in memory and multiplies from there. OpenVINO reads the same operator as weights that it
keeps compressed.
"""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from hasten.graph.duplicate import duplicate
from hasten.graph.parameters import drop_unread, new_parameter
from hasten.quantization.dynamic import dynamic_input
from hasten.quantization.stored import Stored, stored

aten = torch.ops.aten

# The kernels' blocks are powers of two from 16; their int8 products are fastest at 128.
_BLOCKS = (128, 64, 32, 16)
# Products in 8 bits: activations are rounded block by block as they come. In float the 8-bit kernel is slower than
# the float product it replaces.
_INT8_PRODUCTS = 4
_BIAS_ARGUMENT = 2


def pack_products(graph: GraphModule, *, rounds_inputs: bool = False) -> GraphModule:
    """A copy for an ONNX writer in which linear layers with integer weights are packed kernels; `graph` if it has none.

    Args:
        graph: Weights alone become MatMulNBits, with activations that are rounded as they come DynamicQuantizeMatMul.
        rounds_inputs: Whether the reader rounds the inputs of compressed weights by itself, in its own groups, so that
            both become MatMulNBits, of float inputs.
    """
    if not any(_has_kernel(graph, node) for node in graph.graph.nodes):
        return graph
    copy = duplicate(graph)
    for node in list(copy.graph.nodes):
        if _has_kernel(copy, node):
            _pack(copy, node, rounds_inputs)
    copy.graph.eliminate_dead_code()
    drop_unread(copy)
    copy.recompile()
    return copy


def pack(integers: Tensor, bits: int, block: int) -> Tensor:
    """Weights as MatMulNBits reads them.

    Args:
        integers: int8, [n, k], symmetric around zero within `bits` bits.
        bits: 4 or 8.
        block: Weights that share a scale; divides k.

    Returns:
        uint8, [n, k / block, block * bits / 8]; of two weights in a byte the first is the lower half.
    """
    unsigned: Tensor = (integers.short() + 2 ** (bits - 1)).to(torch.uint8).reshape(len(integers), -1, block)
    if bits == 4:
        unsigned = unsigned[..., ::2] | (unsigned[..., 1::2] << 4)
    return unsigned


def _has_kernel(graph: GraphModule, node: Node) -> bool:
    return node.target is aten.linear.default and (
        dynamic_input(node) is not None or _packable(graph, node) is not None
    )


def _pack(graph: GraphModule, layer: Node, rounds_inputs: bool) -> None:
    """Replace `layer` by its packed kernel."""
    source = dynamic_input(layer)
    if source is not None and rounds_inputs:
        layer.update_arg(0, source)
    elif source is not None:
        _replace_dynamic(graph, layer, source)
        return
    found = _packable(graph, layer)
    if found is not None:
        _replace(graph, layer, *found)


def _packable(graph: GraphModule, node: Node) -> tuple[Stored, int] | None:
    """The integers of a linear layer's weight and the block to pack them in."""
    found = stored(graph, node.args[1])
    if found is None or len(found.shape) != 2 or _is_integer(node.args[0]):
        return None
    block = next((size for size in _BLOCKS if found.length % size == 0), None)
    return None if block is None else (found, block)


def _is_integer(value: Any) -> bool:
    """Whether an activation is integers too: then the product is one of integers, and other kernels have it."""
    return isinstance(value, Node) and "dequantize_per_tensor" in str(value.target)


def _replace(graph: GraphModule, layer: Node, weight: Stored, block: int) -> None:
    n, k = weight.shape
    bits = 4 if weight.high <= 7 else 8
    scale = weight.scale.repeat_interleave(weight.length // block).reshape(n, k // block)
    bias = layer.args[_BIAS_ARGUMENT] if len(layer.args) > _BIAS_ARGUMENT else None
    with graph.graph.inserting_before(layer):
        packed = new_parameter(graph, f"{layer.name}_packed", pack(weight.integers.reshape(n, k), bits, block))
        scales = new_parameter(graph, f"{layer.name}_scales", scale)
        product = graph.graph.call_function(_product, (layer.args[0], packed, scales, bias, bits, block))
    layer.replace_all_uses_with(product)
    graph.graph.erase_node(layer)


def _replace_dynamic(graph: GraphModule, layer: Node, source: Node) -> None:
    weight = stored(graph, layer.args[1])
    assert weight is not None  # `quantize_dynamically` stores every such weight per channel
    bias = layer.args[_BIAS_ARGUMENT] if len(layer.args) > _BIAS_ARGUMENT else None
    with graph.graph.inserting_before(layer):
        integers = new_parameter(graph, f"{layer.name}_integers", weight.integers.t().contiguous())
        scales = new_parameter(graph, f"{layer.name}_scales", weight.scale.clone())
        product = graph.graph.call_function(_dynamic_product, (source, integers, scales, bias))
    layer.replace_all_uses_with(product)
    graph.graph.erase_node(layer)


def _dynamic_product(x: Tensor, integers: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """One DynamicQuantizeMatMul node: x rounded to uint8 as one tensor, times int8 [k, n], plus the bias [n]."""
    return torch.onnx.ops.symbolic(
        "com.microsoft::DynamicQuantizeMatMul",
        (x, integers, scales, None, bias),
        dtype=x.dtype,
        shape=(*x.shape[:-1], len(scales)),
        version=1,
    )


def _product(x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None, bits: int, block: int) -> Tensor:
    """What the ONNX exporter traces: one MatMulNBits node, its result of shape [..., n]."""
    n, blocks = scales.shape
    attributes: dict[str, Any] = {
        "K": blocks * block,
        "N": n,
        "bits": bits,
        "block_size": block,
        "accuracy_level": _INT8_PRODUCTS,
    }
    result = torch.onnx.ops.symbolic(
        "com.microsoft::MatMulNBits",
        (x, packed, scales),
        attributes,
        dtype=x.dtype,
        shape=(*x.shape[:-1], n),
        version=1,
    )
    return result if bias is None else result + bias


torch.fx.wrap("_product")
torch.fx.wrap("_dynamic_product")
