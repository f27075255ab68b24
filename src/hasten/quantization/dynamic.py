"""Dynamic quantization: weights are int8 in the file, activations become int8 as they come, with the range they have.

Source of the activations' rounding: ONNX, operator DynamicQuantizeLinear; torchao's `choose_qparams` computes the same.
"""

import operator
from collections.abc import Iterable

import torch
from torch.fx import GraphModule, Node

from hasten.errors import Unsupported
from hasten.graph.duplicate import duplicate, separate
from hasten.graph.layers import CONVOLUTIONS
from hasten.graph.parameters import tensor_of
from hasten.quantization.layerwise import refine
from hasten.quantization.static import check_names, inference_form, one_batch
from hasten.quantization.stored import stored
from hasten.quantization.torchao import CHOOSE_PARAMETERS, DEQUANTIZE_DYNAMIC, QUANTIZE_DYNAMIC
from hasten.quantization.weights import replace_weights, rounder
from hasten.recipe import Target, name_of
from hasten.task import Inputs

aten = torch.ops.aten

_LOW, _HIGH = 0, 255
_SMALLEST_SCALE = 1e-12
_REFINING_SAMPLES = 128


def quantize_dynamically(
    graph: GraphModule,
    example: Inputs,
    batches: Iterable[Inputs],
    *,
    weight_bits: int = 8,
    keep_float: tuple[str, ...] = (),
    rounding: str = "gptq",
    bias_correction: bool = True,
) -> GraphModule:
    """A copy of `graph` whose linear layers read int8 weights and inputs that are rounded as they come.

    An input is rounded as one tensor (uint8, the range from its least to its largest value, with 0 in it), so an
    answer may depend a little on what else is in the batch. Convolutions stay in float: no runtime here has a dynamic
    one that is faster.

    Args:
        graph: Captured graph.
        example: One batch of inputs.
        batches: Calibration data; only rounding against the data and bias correction look at it.
        weight_bits: 8 or 7, symmetric per output channel.
        keep_float: Names of layers that stay in float.
        rounding: A name in `layerwise.ROUNDINGS`.
        bias_correction: Whether biases make up for the mean error of rounding.

    Raises:
        Unsupported: The graph has no linear layer, or a name in `keep_float` is not in it.
        InvalidInput: `batches` is empty, and is looked at.
    """
    reference = inference_form(graph, example, share_tensors=True)
    check_names(reference, keep_float)
    quantized = duplicate(reference, share_tensors=True)
    convolutions = {n.name for n in quantized.graph.nodes if n.target in CONVOLUTIONS}
    if not replace_weights(quantized, rounder("linear", weight_bits, None), frozenset(keep_float) | convolutions):
        raise Unsupported(
            "The graph must have a linear layer for dynamic activations, but has none. Use activations='int8'."
        )
    _round_inputs(quantized)
    separate(quantized, reference)
    if rounding != "nearest" or bias_correction:
        refine(quantized, reference, one_batch(batches, _REFINING_SAMPLES), rounding=rounding, biases=bias_correction)
    return quantized


def dynamic_input(layer: Node) -> Node | None:
    """What a layer's dynamically rounded input is rounded from; None if it is not such a layer."""
    source = layer.args[0] if layer.args else None
    if not isinstance(source, Node) or source.target is not DEQUANTIZE_DYNAMIC:
        return None
    rounded = source.args[0]
    return rounded.args[0]  # type: ignore[union-attr, return-value]


def check_dynamic(graph: GraphModule, target: Target) -> None:
    """Raise `Unsupported` if `graph` has dynamic activations and `target` has no kernel for them.

    A target that has states `dynamic_activations`.
    """
    if getattr(target, "dynamic_activations", False):
        return
    layers = [node.name for node in graph.graph.nodes if dynamic_input(node) is not None]
    if layers:
        raise Unsupported(
            f"target {name_of(target)} has no kernel for activations that are rounded as they come, but {len(layers)} "
            f"layers ({', '.join(layers[:3])}{', ...' if len(layers) > 3 else ''}) ask for it. "
            "Use Quantize with activations='int8'."
        )


def _round_inputs(graph: GraphModule) -> None:
    """Put rounding in front of every linear layer with integer weights, once for all that read the same tensor."""
    rounded: dict[Node, Node] = {}
    for layer in [n for n in graph.graph.nodes if n.target is aten.linear.default]:
        source = layer.args[0]
        if stored(graph, layer.args[1]) is None or tensor_of(graph, source) is not None:
            continue
        if source not in rounded:
            with graph.graph.inserting_before(layer):
                rounded[source] = _rounded(graph, source)
        layer.update_arg(0, rounded[source])
    graph.recompile()


def _rounded(graph: GraphModule, x: Node) -> Node:
    call = graph.graph.call_function
    chosen = call(CHOOSE_PARAMETERS, (x, _LOW, _HIGH, _SMALLEST_SCALE, torch.uint8))
    scale, zero_point = call(operator.getitem, (chosen, 0)), call(operator.getitem, (chosen, 1))
    integers = call(QUANTIZE_DYNAMIC, (x, scale, zero_point, _LOW, _HIGH, torch.uint8))
    return call(DEQUANTIZE_DYNAMIC, (integers, scale, zero_point, _LOW, _HIGH, torch.uint8))
