"""Static quantization of a captured graph: inference form, placement, calibration, conversion to Q/DQ."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.fx import GraphModule

from hasten.errors import InvalidInput, Unsupported
from hasten.graph.attention import decompose_attention
from hasten.graph.canonical import to_inference_form, writes_in_place
from hasten.graph.capture import export, export_functional
from hasten.graph.duplicate import duplicate
from hasten.graph.fold_batch_norm import fold_batch_norm
from hasten.quantization.layerwise import refine
from hasten.quantization.observers import OBSERVERS, PerChannelWeight
from hasten.quantization.placement import Placement
from hasten.quantization.quantizer import PlacedQuantizer
from hasten.quantization.torchao import (
    ANNOTATION_KEY,
    DerivedObserverOrFakeQuantize,
    ObserverBase,
    QuantizationSpec,
    convert_pt2e,
    prepare_pt2e,
)
from hasten.task import Inputs

# Every position of every sample counts, so few samples are enough; layers with few positions decide how many. All of
# them pass a layer as one batch. A mean for a bias settles long before the products that weights are rounded against.
_ROUNDING_SAMPLES, _BIAS_SAMPLES = 128, 32


@dataclass(frozen=True)
class Scheme:
    """Everything static quantization chooses.

    Attributes:
        placement: Where Q/DQ stands.
        observer: How the range of an activation is chosen, a name in `OBSERVERS`.
        weight_bits: 8, or 7 for CPUs whose 8-bit products saturate 16-bit sums.
        keep_float: Names of layers, as nodes of the captured graph, that stay in float.
        rounding: How weights are rounded, a name in `placement.ROUNDING_NAMES`.
        bias_correction: Whether biases make up for the mean error of rounding.
    """

    placement: Placement
    observer: str = "min_max"
    weight_bits: int = 8
    keep_float: tuple[str, ...] = ()
    rounding: str = "gptq"
    bias_correction: bool = True


def quantize_statically(graph: GraphModule, example: Inputs, batches: Iterable[Inputs], scheme: Scheme) -> GraphModule:
    """A copy of `graph` whose integer operators stand between quantize and dequantize nodes.

    Args:
        graph: Captured graph.
        example: One batch of inputs.
        batches: Batches to observe the ranges of activations on.
        scheme: What to choose.

    Raises:
        Unsupported: Nothing in the graph can run on integers, or a name in `keep_float` is not in it.
        InvalidInput: `batches` is empty.
    """
    reference = inference_form(graph, example)
    prepared = prepare(reference, scheme)
    first = calibrate(prepared, batches, _BIAS_SAMPLES if scheme.rounding == "nearest" else _ROUNDING_SAMPLES)
    quantized = convert(prepared)
    if scheme.rounding != "nearest" or scheme.bias_correction:
        refine(quantized, reference, first, rounding=scheme.rounding, biases=scheme.bias_correction)
    return quantized


def prepare(graph: GraphModule, scheme: Scheme) -> GraphModule:
    """A copy of a graph in inference form with an observer at every tensor that becomes integer."""
    check_names(graph, scheme.keep_float)
    symmetric = scheme.placement.zero_point in ("middle", "signed")
    qscheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
    integers = (torch.int8, -128, 127) if scheme.placement.zero_point == "signed" else (torch.uint8, 0, 255)
    activation = QuantizationSpec(integers[0], OBSERVERS[scheme.observer], integers[1], integers[2], qscheme)
    # Symmetric integers: the lowest of two's complement stays unused.
    top = 2 ** (scheme.weight_bits - 1) - 1
    weight = QuantizationSpec(torch.int8, PerChannelWeight, -top, top, torch.per_channel_symmetric, ch_axis=0)
    quantizer = PlacedQuantizer(scheme.placement, activation, weight, scheme.keep_float)
    prepared: GraphModule = prepare_pt2e(duplicate(graph), quantizer)
    if not any(isinstance(module, ObserverBase) for module in prepared.modules()):
        raise Unsupported("The graph has no convolution, linear layer or product that can run on integers.")
    return prepared


def check_names(graph: GraphModule, keep_float: tuple[str, ...]) -> None:
    """Raise `Unsupported` if `keep_float` names a node that `graph` does not have."""
    names = {node.name for node in graph.graph.nodes}
    for name in keep_float:
        if name not in names:
            raise Unsupported(f"`keep_float` must name nodes of the captured graph, but it has no {name!r}.")


def inference_form(graph: GraphModule, example: Inputs, *, share_tensors: bool = False) -> GraphModule:
    """A copy in evaluation mode, without dropout or in-place operators, batch norm folded, attention in its parts.

    With `share_tensors` it holds the same parameters as `graph`, and only to be read.
    """
    graph = duplicate(graph, share_tensors=share_tensors)
    to_inference_form(graph)
    fold_batch_norm(graph)
    decompose_attention(graph)
    # Tracing again gives every new node the meta data (shape, dtype) that annotation reads.
    program = export_functional(graph, example) if writes_in_place(graph) else export(graph, example)
    fresh = program.module(check_guards=False)
    assert isinstance(fresh, GraphModule)
    return fresh


def calibrate(prepared: GraphModule, batches: Iterable[Inputs], kept: int = _ROUNDING_SAMPLES) -> Inputs:
    """Run the observed graph on `batches` and return their first `kept` samples, those that refining looks at."""

    def observed() -> Iterator[Inputs]:
        for inputs in batches:
            prepared(*inputs)
            yield inputs

    with torch.no_grad():
        seen = observed()
        first = one_batch(seen, kept)
        for _ in seen:
            pass
    return first


def one_batch(batches: Iterable[Inputs], samples: int) -> Inputs:
    """The first `samples` samples as one batch.

    Raises:
        InvalidInput: There is none.
    """
    parts = list(first_samples(batches, samples))
    if not parts:
        raise InvalidInput("`calibration` must yield at least one batch, but it yields none.")
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def convert(prepared: GraphModule) -> GraphModule:
    """Replace the observers by Q/DQ with their parameters, and weights by their integers."""
    for module in list(prepared.modules()):
        # Deriving a bias's parameters may raise a weight's scale, which must be known before the weight is converted.
        if isinstance(module, DerivedObserverOrFakeQuantize):
            module.calculate_qparams()
    converted = convert_pt2e(prepared)
    for node in converted.graph.nodes:
        node.meta.pop(ANNOTATION_KEY, None)
    assert isinstance(converted, GraphModule)
    return converted


def first_samples(batches: Iterable[Inputs], samples: int) -> Iterator[Inputs]:
    """The batches that hold the first `samples` samples; the last is cut."""
    left = samples
    for inputs in batches:
        if left <= 0:
            return
        yield tuple(x[:left] for x in inputs)
        left -= len(inputs[0])
