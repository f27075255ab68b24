"""fp8 (e4m3) on a captured graph: inputs and weights of layers rounded to it, in operators that any CPU computes.

The graph is the reference by which accuracy is judged where no hardware multiplies fp8; targets that do recognise its
layers by `fp8_layer`. Source: Micikevicius et al. 2022, "FP8 Formats for Deep Learning", sections 3 and 4: e4m3 for
inference, one scale per tensor of activations and per channel of weights, the largest magnitude at fp8's largest.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from hasten.errors import InvalidInput, Unsupported
from hasten.graph.duplicate import duplicate
from hasten.graph.layers import LAYERS
from hasten.graph.parameters import new_parameter, tensor_of
from hasten.quantization.static import check_names, inference_form
from hasten.quantization.torchao import DEQUANTIZE_PER_CHANNEL
from hasten.recipe import Target, name_of
from hasten.task import Inputs

aten = torch.ops.aten

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
# Of a tensor that is zero throughout.
_SMALLEST_SCALE = 1e-12
_PER_TENSOR_IN = torch.ops.quantized_decomposed.quantize_per_tensor.default
_PER_TENSOR_OUT = torch.ops.quantized_decomposed.dequantize_per_tensor.default


@dataclass(frozen=True)
class Fp8Layer:
    """A layer of which both operands are fp8.

    Attributes:
        source: What its input is rounded from.
        scale: Of the input: value = fp8 * scale.
        rounded: The node whose output is the input as fp8.
        weight: fp8, as the layer's own weight.
        weight_scale: float32, [channels].
    """

    source: Node
    scale: float
    rounded: Node
    weight: Tensor
    weight_scale: Tensor


def quantize_to_fp8(
    graph: GraphModule, example: Inputs, batches: Iterable[Inputs], keep_float: tuple[str, ...] = ()
) -> GraphModule:
    """A copy of `graph` whose convolutions and linear layers read inputs and weights that are rounded to fp8.

    Args:
        graph: Captured graph.
        example: One batch of inputs.
        batches: Batches to find the largest magnitudes of activations on.
        keep_float: Names of layers that stay as they are.

    Raises:
        Unsupported: The graph has no such layer, or a name in `keep_float` is not in it.
        InvalidInput: `batches` is empty.
    """
    made = duplicate(inference_form(graph, example))
    check_names(made, keep_float)
    layers = [node for node in made.graph.nodes if node.name not in keep_float and _is_layer(made, node)]
    if not layers:
        raise Unsupported("The graph has no convolution or linear layer whose operands could be fp8.")
    largest = _largest_magnitudes(made, {layer.args[0] for layer in layers}, batches)
    rounded: dict[Node, Node] = {}
    for layer in layers:
        source: Any = layer.args[0]
        with made.graph.inserting_before(layer):
            if source not in rounded:
                rounded[source] = _rounded(made, source, max(largest[source] / LARGEST, _SMALLEST_SCALE))
            weight = _stored(made, layer)
        layer.update_arg(0, rounded[source])
        layer.update_arg(1, weight)
    made.graph.eliminate_dead_code()
    made.delete_all_unused_submodules()
    made.recompile()
    return made


def fp8_layer(graph: GraphModule, node: Node) -> Fp8Layer | None:
    """What `node` multiplies if it is a layer of `quantize_to_fp8`; else None."""
    if node.target not in LAYERS:
        return None
    entering, weight = (_widened(argument) for argument in node.args[:2])
    if entering is None or weight is None:
        return None
    (rounded, scale), (stored, weight_scale) = entering, weight
    values, scales = tensor_of(graph, stored), tensor_of(graph, weight_scale)
    if not isinstance(scale, float) or values is None or scales is None or not _casts(rounded, FP8):
        return None
    source = rounded.args[0].args[0].args[0]  # type: ignore[union-attr]
    assert isinstance(source, Node)
    return Fp8Layer(source, scale, rounded, values, scales.reshape(-1))


def fp8_as_operators(graph: GraphModule) -> GraphModule:
    """A copy for an ONNX writer whose fp8 operands stand between quantize and dequantize operators; or `graph` itself.

    Only to be written: in torch the quantize operator rounds to integers before it casts.
    """
    if not any(fp8_layer(graph, node) for node in graph.graph.nodes):
        return graph
    made = duplicate(graph)
    call = made.graph.call_function
    grid = (int(-LARGEST), int(LARGEST), FP8)
    for node in list(made.graph.nodes):
        layer = fp8_layer(made, node)
        if layer is None:
            continue
        with made.graph.inserting_before(node):
            rounded = call(_PER_TENSOR_IN, (layer.source, layer.scale, 0, *grid))
            scale = new_parameter(made, f"{node.name}_scales", layer.weight_scale)
            weight = call(DEQUANTIZE_PER_CHANNEL, (node.args[1].args[0].args[0], scale, None, 0, *grid))
            node.update_arg(0, call(_PER_TENSOR_OUT, (rounded, layer.scale, 0, *grid)))
        node.update_arg(1, weight)
    made.graph.eliminate_dead_code()
    made.recompile()
    return made


def check_fp8(graph: GraphModule, target: Target) -> None:
    """Raise `Unsupported` if layers of `graph` multiply fp8 and `target` has no kernel for it.

    A target that has states `fp8_products`.
    """
    if getattr(target, "fp8_products", False):
        return
    layers = [node.name for node in graph.graph.nodes if node.op == "call_function" and fp8_layer(graph, node)]
    if layers:
        raise Unsupported(
            f"target {name_of(target)} has no kernel for fp8, but {len(layers)} layers "
            f"({', '.join(layers[:3])}{', ...' if len(layers) > 3 else ''}) ask for it. Use the target cuda or "
            "tensorrt, or Quantize with weights='int8' and activations='int8'."
        )


def _is_layer(graph: GraphModule, node: Node) -> bool:
    known = node.target in LAYERS
    return known and tensor_of(graph, node.args[1]) is not None and tensor_of(graph, node.args[0]) is None


class _Magnitudes(Interpreter):
    """Runs a graph and keeps the largest magnitude of some nodes."""

    def __init__(self, graph: GraphModule, watched: set[Any]) -> None:
        super().__init__(graph)
        self.found = dict.fromkeys(watched, 0.0)

    def run_node(self, n: Node) -> Any:
        """Run a node, and look at what it gives if it is watched."""
        result = super().run_node(n)
        if n in self.found:
            self.found[n] = max(self.found[n], float(result.abs().max()))
        return result


def _largest_magnitudes(graph: GraphModule, watched: set[Any], batches: Iterable[Inputs]) -> dict[Any, float]:
    magnitudes, count = _Magnitudes(graph, watched), 0
    with torch.no_grad():
        for inputs in batches:
            magnitudes.run(*inputs)
            count += 1
    if not count:
        raise InvalidInput("`calibration` must yield at least one batch, but it yields none.")
    return magnitudes.found


def _rounded(graph: GraphModule, source: Node, scale: float) -> Node:
    call = graph.graph.call_function
    scaled = call(aten.mul.Tensor, (source, 1 / scale))
    # fp8 has no infinity: beyond its range it would be not a number.
    clamped = call(aten.clamp.default, (scaled, -LARGEST, LARGEST))
    return _widen(graph, call(aten._to_copy.default, (clamped,), {"dtype": FP8}), scale)


def _stored(graph: GraphModule, layer: Node) -> Node:
    weight = tensor_of(graph, layer.args[1])
    assert weight is not None
    values = weight.detach().float()
    scale = (values.flatten(1).abs().amax(1) / LARGEST).clamp(min=_SMALLEST_SCALE)
    scale = scale.reshape(-1, *[1] * (values.ndim - 1))
    integers = new_parameter(graph, f"{layer.name}_fp8", (values / scale).clamp(-LARGEST, LARGEST).to(FP8))
    return _widen(graph, integers, new_parameter(graph, f"{layer.name}_scale", scale))


def _widen(graph: GraphModule, rounded: Node, scale: float | Node) -> Node:
    wide = graph.graph.call_function(aten._to_copy.default, (rounded,), {"dtype": torch.float32})
    return graph.graph.call_function(aten.mul.Tensor, (wide, scale))


def _widened(node: Any) -> tuple[Node, Any] | None:
    """The fp8 node and the scale behind `node`."""
    if not isinstance(node, Node) or node.target is not aten.mul.Tensor or not _casts(node.args[0], torch.float32):
        return None
    return node.args[0].args[0], node.args[1]  # type: ignore[union-attr, return-value]


def _casts(node: Any, dtype: torch.dtype) -> bool:
    known = isinstance(node, Node) and node.target in (aten._to_copy.default, aten.to.dtype)
    return known and dtype in (*node.args, *node.kwargs.values())
