"""Say on a captured graph which tensors become integers, in the places that a target's kernels want."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from hasten.graph.layers import CONVOLUTIONS, LAYERS
from hasten.graph.parameters import tensor_of
from hasten.quantization import operators
from hasten.quantization.placement import Placement
from hasten.quantization.torchao import (
    ANNOTATION_KEY,
    DerivedQuantizationSpec,
    ObserverBase,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

aten = torch.ops.aten

_INT32 = torch.iinfo(torch.int32)
_BIAS_ARGUMENT = 2

Edge = tuple[Node, Node]


@dataclass
class Plan:
    """Which tensors are rounded: `edges` into integer operators, and `rounded` outputs of integer operators.

    Attributes:
        layers: Convolutions and linear layers that run on integers.
        edges: For every layer or product, where its integer inputs enter: (producer, consumer).
        rounded: Nodes whose output is rounded to integers for all its consumers.
        preserving: Those of `rounded` that keep their input's integers.
    """

    layers: list[Node] = field(default_factory=list)
    edges: dict[Node, list[Edge]] = field(default_factory=dict)
    rounded: set[Node] = field(default_factory=set)
    preserving: set[Node] = field(default_factory=set)


class PlacedQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates a graph for `prepare_pt2e` according to a placement.

    Args:
        placement: What the target's kernels want.
        activation: Spec of activations.
        weight: Spec of weights, per channel along axis 0.
        keep_float: Names of layers that stay in float.
    """

    def __init__(
        self, placement: Placement, activation: QuantizationSpec, weight: QuantizationSpec, keep_float: tuple[str, ...]
    ) -> None:
        self._placement = placement
        self._activation = activation
        self._weight = weight
        self._keep_float = frozenset(keep_float)

    def annotate(self, model: GraphModule) -> GraphModule:
        """Write the annotation of every node that has one into its meta data."""
        plan = make_plan(model, self._placement, self._keep_float)
        annotations: dict[Node, QuantizationAnnotation] = {}
        for node in model.graph.nodes:
            if node in plan.edges:
                for producer, consumer in plan.edges[node]:
                    if producer not in plan.rounded:
                        _of(annotations, consumer).input_qspec_map[producer] = self._activation
            if node in plan.layers:
                self._annotate_constants(model, plan, annotations, node)
            if node in plan.preserving:
                self._annotate_preserving(annotations, node)
            elif node in plan.rounded:
                _of(annotations, node).output_qspec = self._activation
        for node, annotation in annotations.items():
            node.meta[ANNOTATION_KEY] = annotation
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to check: the plan holds only what `make_plan` knows to be possible."""

    def _annotate_constants(
        self, model: GraphModule, plan: Plan, annotations: dict[Node, QuantizationAnnotation], layer: Node
    ) -> None:
        weight = layer.args[1]
        assert isinstance(weight, Node)
        specs = _of(annotations, layer).input_qspec_map
        specs[weight] = self._weight
        bias = layer.args[_BIAS_ARGUMENT] if len(layer.args) > _BIAS_ARGUMENT else None
        values = tensor_of(model, bias)
        if values is None or not _adds_bias_in_integers(layer):
            return
        producer, consumer = plan.edges[layer][0]
        source = producer if producer in plan.rounded else (producer, consumer)
        assert isinstance(bias, Node)
        specs[bias] = DerivedQuantizationSpec(
            derived_from=[source, (weight, layer)],
            derive_qparams_fn=_bias_parameters(values.detach()),
            dtype=torch.int32,
            quant_min=_INT32.min,
            quant_max=_INT32.max,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
        )

    def _annotate_preserving(self, annotations: dict[Node, QuantizationAnnotation], node: Node) -> None:
        inputs = [source for source in node.all_input_nodes if operators.is_tensor(source)]
        first = inputs[0]
        annotation = _of(annotations, node)
        annotation.input_qspec_map[first] = self._activation
        for other in inputs[1:]:
            annotation.input_qspec_map[other] = SharedQuantizationSpec((first, node))
        annotation.output_qspec = SharedQuantizationSpec((first, node))


def make_plan(graph: GraphModule, placement: Placement, keep_float: frozenset[str]) -> Plan:
    """Decide which tensors of `graph` are rounded to integers. Every node must carry its value's meta data."""
    plan = Plan()
    for node in graph.graph.nodes:
        if node.name not in keep_float and _is_layer(graph, node):
            plan.layers.append(node)
            plan.edges[node] = [_entry(node, node.args[0])]
        elif placement.attention and node.target in operators.PRODUCTS and node.name not in keep_float:
            sources = node.args[:2]
            if all(operators.is_tensor(s) and tensor_of(graph, s) is None for s in sources):
                plan.edges[node] = [_entry(node, source) for source in sources]
    _round_outputs(graph, placement, plan)
    return plan


def _is_layer(graph: GraphModule, node: Node) -> bool:
    if node.target not in LAYERS:
        return False
    return tensor_of(graph, node.args[1]) is not None


def _entry(consumer: Node, source: object) -> Edge:
    """Where the integers that `consumer` reads from `source` begin: in front of padding, which becomes its own."""
    assert isinstance(source, Node)
    while len(source.users) == 1 and operators.pads_with_zero(source):
        consumer, source = source, source.args[0]
        assert isinstance(source, Node)
    return source, consumer


def _tail(node: Node, placement: Placement) -> Node:
    """The last of the activations that the kernel of `node` applies before it rounds."""
    while len(node.users) == 1:
        user = next(iter(node.users))
        if operators.activation_of(user) not in placement.fused:
            break
        node = user
    return node


def _round_outputs(graph: GraphModule, placement: Placement, plan: Plan) -> None:
    """Fill `plan.rounded` and `plan.preserving`: integers flow from convolutions to the next integer operator."""
    # Operators that can run on integers, because all they read can be integers; by the node that ends them.
    ends: dict[Node, Node] = {}
    convolutions = {node for node in plan.layers if node.target in CONVOLUTIONS}
    can_round: set[Node] = set()
    for node in graph.graph.nodes:
        inputs = [source for source in node.all_input_nodes if operators.is_tensor(source)]
        follows = bool(inputs) and all(source in can_round for source in inputs)
        if node in convolutions or (follows and node.target in operators.ADDITIONS and len(inputs) == 2):
            ends[_tail(node, placement)] = node
            can_round.add(_tail(node, placement))
        elif follows and (node.target in operators.AVERAGES or _preserves(node)) and operators.is_tensor(node):
            ends[node] = node
            can_round.add(node)
    end_of = {first: end for end, first in ends.items()}
    summed = _added_to(end_of, convolutions) if placement.adds_unrounded else {}
    read_as_integers = {producer for edges in plan.edges.values() for producer, _ in edges}
    for node in reversed(list(graph.graph.nodes)):
        if node not in can_round:
            continue
        needed = node in read_as_integers or any(
            end_of.get(user) in plan.rounded and summed.get(user) is not node for user in node.users
        )
        if needed or (placement.convolution_rounds and ends[node] in convolutions):
            plan.rounded.add(node)
            if _preserves(ends[node]):
                plan.preserving.add(node)


def _preserves(node: Node) -> bool:
    """Whether a node's outputs are its inputs' integers; padding in front of a layer is the layer's own."""
    if operators.pads_with_zero(node):
        return any(user.target in operators.ADDITIONS | operators.CONCATENATIONS for user in node.users)
    return node.target in operators.VALUE_PRESERVING | operators.CONCATENATIONS


def _added_to(additions: Iterable[Node], convolutions: set[Node]) -> dict[Node, Node]:
    """By addition, the convolution whose kernel computes it: the first operand that nothing else reads.

    The kernel writes over the other operand, so a convolution of that operand itself cannot be it.
    """
    found = {}
    for node in additions:
        operands = node.all_input_nodes
        alone = [x for x in operands if x in convolutions and len(x.users) == 1 and x.args[0] not in operands]
        if alone and node.target in operators.ADDITIONS:
            found[node] = alone[0]
    return found


def _adds_bias_in_integers(layer: Node) -> bool:
    """Convolutions and matrix-by-matrix layers add it to the accumulator; a batched product adds it in float."""
    return layer.target in CONVOLUTIONS or layer.args[0].meta["val"].ndim == 2  # type: ignore[union-attr]


def _bias_parameters(bias: Tensor) -> Callable[[list[ObserverBase]], tuple[Tensor, Tensor]]:
    """Scale of a bias in the accumulator of a layer: input scale times weight scale, zero point 0.

    A channel whose weights are almost zero has a scale so small that its bias would not fit 32 bits; its weight
    scale is raised until it does, at no loss, since its weights are almost zero.
    """

    def derive(observers: list[ObserverBase]) -> tuple[Tensor, Tensor]:
        activation, weight = observers
        input_scale = activation.calculate_qparams()[0]
        weight.smallest_scale = bias.abs().to(input_scale.device) / (input_scale * 2.0**30)
        scale = input_scale * weight.calculate_qparams()[0]
        return scale, torch.zeros_like(scale, dtype=torch.int64)

    return derive


def _of(annotations: dict[Node, QuantizationAnnotation], node: Node) -> QuantizationAnnotation:
    return annotations.setdefault(node, QuantizationAnnotation(_annotated=True))
