"""Scale channels between a tensor's producer and its consumers, so that rounding treats them alike.

For a positive vector s, producer / s and consumer * s compute the same function, as long as everything between them
is positively homogeneous per channel. Cross-layer equalization and SmoothQuant choose s differently; both live on
the pairs found here.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from hasten.graph.layers import CONVOLUTIONS, LAYERS
from hasten.graph.parameters import new_parameter, set_tensor, tensor_of
from hasten.task import Inputs

aten = torch.ops.aten

# f(x / s) = f(x) / s for s > 0, channel by channel.
_POOLING = (aten.max_pool2d.default, aten.avg_pool2d.default)
_HOMOGENEOUS = (aten.relu.default, aten.leaky_relu.default, *_POOLING)
_GROUPS_ARGUMENT = 6


@dataclass(frozen=True)
class Pair:
    """A producer whose output channels can be divided, and all layers that read them.

    Attributes:
        producer: A convolution, a linear layer, or a layer norm with weights; None if none of them can be divided,
            and the division has to be an operator of its own.
        value: The tensor between them, behind the activations.
        consumers: Convolutions or linear layers that read `value`; all its readers if there is a producer.
    """

    producer: Node | None
    value: Node
    consumers: tuple[Node, ...]


def pairs(graph: GraphModule, *, layer_norms: bool = True) -> list[Pair]:
    """Every pair of `graph` whose parameters are used nowhere else, with or without those that a layer norm begins."""
    found = []
    for node in graph.graph.nodes:
        if not _is_producer(graph, node) or (node.target == aten.layer_norm.default and not layer_norms):
            continue
        value = node
        while len(value.users) == 1 and next(iter(value.users)).target in _HOMOGENEOUS:
            value = next(iter(value.users))
        consumers = tuple(value.users)
        if consumers and all(_is_consumer(graph, u, value) and _same_axis(node, value, u) for u in consumers):
            found.append(Pair(node, value, consumers))
    return found


def readers(graph: GraphModule, folded: list[Pair]) -> list[Pair]:
    """Linear layers by the value they read, where no pair of `folded` covers it."""
    covered = {pair.value for pair in folded}
    found = []
    for node in graph.graph.nodes:
        layers = tuple(u for u in node.users if u.target == aten.linear.default and _is_consumer(graph, u, node))
        if layers and node not in covered:
            found.append(Pair(None, node, layers))
    return found


def apply_scale(graph: GraphModule, pair: Pair, scale: Tensor) -> None:
    """Divide the producer's channels by `scale` [channels] and multiply the consumers' inputs by it, in place."""
    with torch.no_grad():
        if pair.producer is None:
            _insert_division(graph, pair, scale)
        for argument in _scaled_arguments(pair.producer):
            parameter = tensor_of(graph, argument)
            if parameter is not None:
                assert isinstance(argument, Node)
                shape = [-1] + [1] * (parameter.ndim - 1)
                set_tensor(graph, argument, parameter / scale.view(shape).to(parameter.dtype))
        for consumer in pair.consumers:
            weight = consumer.args[1]
            assert isinstance(weight, Node)
            values = tensor_of(graph, weight)
            assert values is not None
            axis = 0 if is_depthwise(graph, consumer) else 1
            shape = [-1 if dim == axis else 1 for dim in range(values.ndim)]
            set_tensor(graph, weight, values * scale.view(shape).to(values.dtype))


def _insert_division(graph: GraphModule, pair: Pair, scale: Tensor) -> None:
    with graph.graph.inserting_after(pair.value):
        factor = new_parameter(graph, f"{pair.value.name}_smooth", 1 / scale)
    with graph.graph.inserting_after(factor):
        divided = graph.graph.call_function(aten.mul.Tensor, (pair.value, factor))
    for consumer in pair.consumers:
        consumer.replace_input_with(pair.value, divided)


def is_depthwise(graph: GraphModule, layer: Node) -> bool:
    """Whether every output channel of a convolution reads one input channel, and there are as many."""
    weight = tensor_of(graph, layer.args[1])
    groups = layer.args[_GROUPS_ARGUMENT] if len(layer.args) > _GROUPS_ARGUMENT else 1
    return weight is not None and layer.target in CONVOLUTIONS and bool(groups != 1 and groups == len(weight))


def producer_ranges(graph: GraphModule, pair: Pair) -> Tensor:
    """Largest absolute weight of every output channel of the producer, [channels]."""
    weight = tensor_of(graph, _scaled_arguments(pair.producer)[0])
    assert weight is not None
    return weight.detach().abs().flatten(1).amax(1) if weight.ndim > 1 else weight.detach().abs()


def consumer_ranges(graph: GraphModule, pair: Pair) -> Tensor:
    """Largest absolute weight that reads every channel, over all consumers, [channels]."""
    found = []
    for consumer in pair.consumers:
        weight = tensor_of(graph, consumer.args[1])
        assert weight is not None
        magnitudes = weight.detach().abs()
        if not is_depthwise(graph, consumer):
            magnitudes = magnitudes.transpose(0, 1)
        found.append(magnitudes.flatten(1).amax(1))
    return torch.stack(found).amax(0)


def activation_ranges(graph: GraphModule, values: list[Node], batches: Iterable[Inputs]) -> dict[Node, Tensor]:
    """Largest absolute value of every channel of `values` over `batches`, [channels] each.

    Channels are dimension 1 of what a convolution reads or makes, else the last.
    """
    ranges: dict[Node, Tensor] = {}
    wanted = set(values)

    class Watch(Interpreter):
        def run_node(self, n: Node) -> object:
            result = super().run_node(n)
            if n in wanted:
                axis = 1 if result.ndim >= 3 and _has_channels_first(n) else result.ndim - 1
                found = result.abs().amax([dim for dim in range(result.ndim) if dim != axis])
                ranges[n] = torch.maximum(ranges[n], found) if n in ranges else found
            return result

    with torch.no_grad():
        for inputs in batches:
            Watch(graph).run(*inputs)
    return ranges


def _has_channels_first(value: Node) -> bool:
    return any(user.target in CONVOLUTIONS for user in value.users)


def _is_producer(graph: GraphModule, node: Node) -> bool:
    if node.target not in (*LAYERS, aten.layer_norm.default):
        return False
    arguments = _scaled_arguments(node)
    if not arguments or tensor_of(graph, arguments[0]) is None:
        return False
    if node.target == aten.layer_norm.default and len(node.args[1]) != 1:  # type: ignore[arg-type]
        return False
    return all(not isinstance(a, Node) or (a.op == "get_attr" and _is_read_once(graph, a)) for a in arguments)


def _scaled_arguments(producer: Node | None) -> list[object]:
    """Weight and bias."""
    if producer is None:
        return []
    first = 2 if producer.target == aten.layer_norm.default else 1
    return list(producer.args[first : first + 2])


def _is_consumer(graph: GraphModule, node: Node, value: Node) -> bool:
    if node.target not in LAYERS or node.args[0] is not value:
        return False
    weight = node.args[1]
    groups = node.args[_GROUPS_ARGUMENT] if node.target in CONVOLUTIONS and len(node.args) > _GROUPS_ARGUMENT else 1
    known = isinstance(weight, Node) and tensor_of(graph, weight) is not None and _is_read_once(graph, weight)
    return bool(known and (groups == 1 or is_depthwise(graph, node)))


def _same_axis(producer: Node, value: Node, consumer: Node) -> bool:
    """Whether both layers mean the same dimension of `value` by channels: 1 of a convolution, the last of others."""
    first = consumer.target in CONVOLUTIONS
    return (producer.target in CONVOLUTIONS) == first and (first or not _is_pooled(value))


def _is_pooled(value: Node) -> bool:
    while value.target in _HOMOGENEOUS:
        if value.target in _POOLING:
            return True
        value = value.args[0]  # type: ignore[assignment]
    return False


def _is_read_once(graph: GraphModule, parameter: Node) -> bool:
    """Whether one operator alone reads the tensor, through whatever `get_attr` nodes."""
    values = tensor_of(graph, parameter)
    nodes = [n for n in graph.graph.nodes if n.op == "get_attr" and tensor_of(graph, n) is values]
    return sum(len(n.users) for n in nodes) == 1
