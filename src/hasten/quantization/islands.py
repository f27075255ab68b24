"""Integer layers that stand alone among float ones: two conversions around a product that saves less than they cost."""

from torch.fx import GraphModule, Node

from hasten.graph.cost import NodeCost, node_costs
from hasten.quantization import operators
from hasten.quantization.placement import Placement
from hasten.quantization.quantizer import Plan, make_plan

# A conversion reads and writes memory and does nothing else; below this many multiply-accumulates per converted value
# an integer product does not save what its conversions take. A depthwise 3x3 convolution has 4 to 5.
_WORTHWHILE_MACS_PER_VALUE = 16
_FLOAT_BYTES = 4
_FOLLOWERS = operators.VALUE_PRESERVING | operators.ADDITIONS | operators.AVERAGES | operators.CONCATENATIONS


def islands(graph: GraphModule, placement: Placement, keep_float: frozenset[str]) -> frozenset[str]:
    """Names of layers that would better stay in float, too, if those in `keep_float` do.

    Args:
        graph: In inference form, every node with its value's meta data.
        placement: Where Q/DQ stands.
        keep_float: Names of layers that stay in float already.
    """
    costs = node_costs(graph)
    found: frozenset[str] = frozenset()
    while True:
        plan = make_plan(graph, placement, keep_float | found)
        more = {
            layer.name
            for layer in plan.layers
            if not _has_integer_neighbour(plan, layer, placement)
            and costs[layer.name].macs < _conversion_macs(layer, costs)
        }
        if not more:
            return found
        # A layer that goes back to float may leave its neighbours alone.
        found |= more


def _has_integer_neighbour(plan: Plan, layer: Node, placement: Placement) -> bool:
    """Whether a layer's input comes as integers anyway, or its output is read by another integer operator."""
    source, _ = plan.edges[layer][0]
    if source in plan.rounded:
        return True
    others = {producer for node, edges in plan.edges.items() if node is not layer for producer, _ in edges}
    return source in others or bool(_reached_in_integers(layer, placement) & others)


def _reached_in_integers(layer: Node, placement: Placement) -> set[Node]:
    """The layer and everything behind it up to the first operators that have no integer form."""
    reached, left = {layer}, [layer]
    while left:
        for user in left.pop().users:
            integer = user.target in _FOLLOWERS or operators.activation_of(user) in placement.fused
            if integer and user not in reached:
                reached.add(user)
                left.append(user)
    return reached


def _conversion_macs(layer: Node, costs: dict[str, NodeCost]) -> float:
    weight = layer.args[1]
    assert isinstance(weight, Node)
    moved = costs[layer.name].size_bytes - weight.meta["val"].numel() * _FLOAT_BYTES
    return float(_WORTHWHILE_MACS_PER_VALUE * moved / _FLOAT_BYTES)
