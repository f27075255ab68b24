"""Put integers behind a dequantize operator in the place of a graph's float weights."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from hasten.errors import Unsupported
from hasten.graph.duplicate import duplicate, separate
from hasten.graph.layers import LAYERS
from hasten.graph.parameters import drop_unread, new_parameter, tensor_of
from hasten.quantization import linear, logarithmic
from hasten.quantization.layerwise import refine
from hasten.quantization.static import check_names, inference_form, one_batch
from hasten.quantization.torchao import DEQUANTIZE_PER_CHANNEL
from hasten.task import Inputs

aten = torch.ops.aten


@dataclass(frozen=True)
class Rounder:
    """How weights are rounded.

    Attributes:
        round: A weight to its integers (int8, [blocks, length]) and their scales (float32, [blocks]).
        top: The largest integer; the smallest is its negative.
    """

    round: Callable[[Tensor], tuple[Tensor, Tensor]]
    top: int


def rounder(scheme: str, bits: int, group: int | None) -> Rounder:
    """How weights are rounded: "linear" at up to 8 bits per channel or group, "power_of_two" at up to 4 per channel."""
    if scheme == "power_of_two":
        return Rounder(lambda weight: _powers(weight, bits), 2 ** (2 ** (bits - 1) - 2))

    def round_linearly(weight: Tensor) -> tuple[Tensor, Tensor]:
        length = weight[0].numel()
        by_group = group is not None and length % group == 0
        found = linear.quantize(
            weight, bits, symmetric=True, granularity="group" if by_group else "channel", group=group or length
        )
        return found.integers, found.scale[:, 0]

    return Rounder(round_linearly, 2 ** (bits - 1) - 1)


@dataclass(frozen=True)
class WeightScheme:
    """Everything weight-only quantization chooses.

    Attributes:
        scheme: "linear" or "power_of_two".
        bits: Width of the integers.
        group: Weights that share a scale; None: an output channel.
        embeddings: Whether tables become int8, too.
        rounding: A name in `layerwise.ROUNDINGS`; powers of two are always rounded to nearest.
        bias_correction: Whether biases make up for the mean error of rounding.
        keep_float: Names of layers that stay in float.
        wide: Names of layers that get 8 bits per channel instead.
    """

    scheme: str = "linear"
    bits: int = 8
    group: int | None = None
    embeddings: bool = True
    rounding: str = "gptq"
    bias_correction: bool = True
    keep_float: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()


def quantize_weights(
    graph: GraphModule, example: Inputs, batches: Iterable[Inputs], samples: int, scheme: WeightScheme
) -> GraphModule:
    """A copy of `graph` with integer weights behind dequantize operators.

    Args:
        graph: Captured graph.
        example: One batch of inputs.
        batches: Calibration data.
        samples: How many samples of it to look at.
        scheme: What to choose.

    Raises:
        Unsupported: The graph has no convolution or linear layer to round, or a name is not in it.
    """
    # Nearly all weights are replaced, so copies of the float ones would only fill the memory.
    reference = inference_form(graph, example, share_tensors=True)
    check_names(reference, scheme.keep_float)
    check_names(reference, scheme.wide)
    quantized = duplicate(reference, share_tensors=True)
    kept, wide = frozenset(scheme.keep_float), frozenset(scheme.wide)
    count = replace_weights(quantized, rounder(scheme.scheme, scheme.bits, scheme.group), kept | wide)
    count += replace_weights(quantized, rounder("linear", 8, None), kept)
    if not count:
        raise Unsupported("The graph has no convolution or linear layer whose weights can be rounded.")
    if scheme.embeddings:
        replace_embeddings(quantized, kept)
    separate(quantized, reference)
    # Between two powers of two there is no integer that a power could be rounded to.
    rounding = scheme.rounding if scheme.scheme == "linear" else "nearest"
    if rounding != "nearest" or scheme.bias_correction:
        inputs = one_batch(batches, samples)
        refine(quantized, reference, inputs, rounding=rounding, biases=scheme.bias_correction)
    return quantized


def replace_weights(graph: GraphModule, how: Rounder, keep_float: frozenset[str]) -> int:
    """Replace the weights of convolutions and linear layers in place; returns how many layers read integers now."""
    count = 0
    for layer in list(graph.graph.nodes):
        if layer.target not in LAYERS:
            continue
        weight = tensor_of(graph, layer.args[1])
        if weight is None or layer.name in keep_float:
            continue
        integers, scale = how.round(weight.detach())
        layer.update_arg(1, _dequantized(graph, layer, integers, scale, how.top, weight.shape))
        count += 1
    _tidy(graph)
    return count


def replace_embeddings(graph: GraphModule, keep_float: frozenset[str]) -> int:
    """Look rows up in a table of int8 with a scale per row, in place; returns how many tables were replaced.

    What is looked up is scaled, not the table: no runtime ever holds the table in float.
    """
    count = 0
    for lookup in list(graph.graph.nodes):
        if lookup.target is not aten.embedding.default or lookup.name in keep_float:
            continue
        table = tensor_of(graph, lookup.args[0])
        if table is None or not table.is_floating_point():
            continue
        found = linear.quantize(table, 8, symmetric=True, granularity="channel")
        indices, name = lookup.args[1], str(lookup.args[0])
        with graph.graph.inserting_before(lookup):
            integers = new_parameter(graph, f"{name}_integers", found.integers)
            scales = new_parameter(graph, f"{name}_integers_scale", found.scale)
            rows = graph.graph.call_function(aten.embedding.default, (integers, indices))
            steps = graph.graph.call_function(aten.embedding.default, (scales, indices))
            widened = graph.graph.call_function(aten.to.dtype, (rows, torch.float32))
            scaled = graph.graph.call_function(aten.mul.Tensor, (widened, steps))
        lookup.replace_all_uses_with(scaled)
        count += 1
    _tidy(graph)
    return count


def _tidy(graph: GraphModule) -> None:
    graph.graph.eliminate_dead_code()
    drop_unread(graph)
    graph.recompile()


def _dequantized(graph: GraphModule, layer: Node, integers: Tensor, scale: Tensor, top: int, shape: torch.Size) -> Node:
    """Per channel in the weight's own shape, per group as [groups, length] and a reshape."""
    per_channel = len(scale) == shape[0]
    name = f"{layer.args[1]}_integers"
    with graph.graph.inserting_before(layer):
        q = new_parameter(graph, name, integers.reshape(shape) if per_channel else integers)
        scales = new_parameter(graph, f"{name}_scale", scale)
        zeros = new_parameter(graph, f"{name}_zero_point", torch.zeros(len(scale), dtype=torch.int64))
        arguments = (q, scales, zeros, 0, -top, top, torch.int8)
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
