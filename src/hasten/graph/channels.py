"""Find which parameter slices of a captured graph must leave together.

`find_channels` walks the graph once. Each operator's rule (`hasten.graph.rules`) maps the axes of its inputs to those
of its output and states what must be removed together (`hasten.graph.relations`). What comes out are units: a filter, a
hidden neuron, an attention head, with every parameter slice that belongs to it. Any choice of units is a valid cut.

What a cut means, exactly: *removing units gives the output that the original gives with every value at a removed
position, in parameters and activations alike, set to zero.* `hasten.graph.surgery` has both sides of that equation.
Units marked approximate run through a statistic over the cut dimension (LayerNorm on a residual stream, a maximum over
channels): there the two sides differ, since the statistic is then taken over fewer values. Means and RMSNorm are exact:
they are rescaled by how many values are left.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx import GraphModule, Node

from hasten.graph.capture import outputs
from hasten.graph.relations import Axis, Relations, Solution
from hasten.graph.rules import rule_for
from hasten.graph.rules.call import Call, Edit, NotCovered, shapes_of, static_size

AxesOfNode = tuple[Axis, ...] | list[tuple[Axis, ...]] | None


@dataclass(frozen=True)
class Slice:
    """Indices of one dimension of one parameter or buffer, named as in the graph's state dict."""

    parameter: str
    dim: int
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Unit:
    """The smallest thing that can be removed: a filter, a neuron, an attention head, and all that hangs on it."""

    id: int
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class Group:
    """Units that touch the same dimensions of the same parameters, so that they can be compared.

    Attributes:
        name: Module path of the first layer that produces them, with `#2`, `#3` where a layer has several groups.
        kind: "filter" (convolution), "neuron" (linear, recurrent, embedding), "head" (attention) or "head size" (one
            element of every head of a layer).
        units: In the order of their first index.
        approximate: Removing them changes a normalisation or mean over the cut dimension; see the module's text.
    """

    name: str
    kind: str
    units: tuple[Unit, ...]
    approximate: bool


@dataclass(frozen=True)
class Channels:
    """What `find_channels` found in one graph; valid until that graph changes.

    Attributes:
        graph: The analysed graph.
        groups: All groups, in graph order.
        axes: Axes of every live node by its name; a list of them for a node with several outputs.
        edits: How to patch a node's arguments after a cut, by its name.
        weighted: (input node, its dimension) of every contraction with a parameter, by the name of the contraction.
        produced: (layer, axis of its outputs, kind) of every weight.
        uncovered: Nodes that no rule covers, with the reason; the channels that meet them are frozen.
        solution: Which units every axis position belongs to.
    """

    graph: GraphModule
    groups: tuple[Group, ...]
    axes: dict[str, AxesOfNode]
    edits: dict[str, list[Edit]]
    weighted: dict[str, list[tuple[Node, int]]]
    produced: tuple[tuple[str, Axis, str], ...]
    uncovered: dict[str, str]
    solution: Solution
    relations: Relations

    def why_frozen(self, node: str, dim: int) -> frozenset[str]:
        """The reasons why positions of a dimension of a (single-output) node cannot be removed; empty if they can."""
        axes = self.axes[node]
        if not isinstance(axes, tuple):
            return frozenset()
        reasons = self.relations.reasons()
        return frozenset().union(*(reasons[p] for p in axes[dim].positions))


def find_channels(graph: GraphModule) -> Channels:
    """Find every unit of `graph` that can be removed, and everything that must leave with it.

    Args:
        graph: From `hasten.capture`; not changed. Its nodes carry `meta["val"]`.
    """
    walk = _Walk(graph)
    for node in graph.graph.nodes:
        if node in walk.live:
            walk.visit(node)
    solution = walk.relations.solve()
    groups = _group(walk, solution)
    return Channels(
        graph,
        groups,
        walk.axes,
        walk.edits,
        walk.weighted,
        tuple(walk.produced),
        walk.uncovered,
        solution,
        walk.relations,
    )


def attribute(graph: GraphModule, path: str) -> Any:
    """The parameter, buffer or submodule at a dotted path."""
    found: Any = graph
    for part in path.split("."):
        found = getattr(found, part)
    return found


def live_nodes(graph: GraphModule) -> set[Node]:
    """Nodes that the outputs depend on or that change something in place; assertions on metadata do not count."""
    live: set[Node] = set()
    for node in reversed(graph.graph.nodes):
        if is_assertion(node):
            continue
        if node.op in ("placeholder", "output") or node.is_impure() or any(user in live for user in node.users):
            live.add(node)
    return live


def is_assertion(node: Node) -> bool:
    """Whether the node only checks dtype, device or layout, as `torch.export` inserts around casts."""
    return node.op == "call_function" and "_assert_tensor_metadata" in str(node.target)


class _Walk:
    """One pass over the graph, collecting axes, relations, edits and marks."""

    def __init__(self, graph: GraphModule) -> None:
        self.graph = graph
        self.live = live_nodes(graph)
        self.parametric: set[Node] = set()
        self.relations = Relations()
        self.axes: dict[str, AxesOfNode] = {}
        self.parameters: dict[int, tuple[str, tuple[Axis, ...]]] = {}
        self.edits: dict[str, list[Edit]] = {}
        self.weighted: dict[str, list[tuple[Node, int]]] = {}
        self.uncovered: dict[str, str] = {}
        self.approximate: list[Axis] = []
        self.heads: list[Axis] = []
        self.produced: list[tuple[str, Axis, str]] = []

    def visit(self, node: Node) -> None:
        if node.op == "get_attr" or (node.all_input_nodes and self.parametric.issuperset(node.all_input_nodes)):
            self.parametric.add(node)
        if node.op == "get_attr":
            self.axes[node.name] = self._parameter(str(node.target))
        elif node.op == "placeholder":
            self.axes[node.name] = self._frozen(node, "it is an input of the model")
        elif node.op == "output":
            for result in outputs(self.graph):
                self._freeze_node(result, "it is an output of the model")
        elif "getitem" in str(node.target) and isinstance(self.axes.get(node.all_input_nodes[0].name), list):
            several: Any = self.axes[node.all_input_nodes[0].name]
            self.axes[node.name] = several[node.args[1]]
        elif any(shapes_of(node)) or isinstance(node.meta.get("val"), Tensor):
            self.axes[node.name] = self._call(node)
        else:
            self._read_as_number(node)

    def _call(self, node: Node) -> AxesOfNode:
        rule = rule_for(node.target) if node.op == "call_function" else None
        name = str(node.target)
        if rule is None:
            return self._unknown(node, f"operator {name} has no rule")
        call = Call(node, self.relations, lambda n: self.axes.get(n.name), self.parametric)
        try:
            axes = rule(call)
            _check_shapes(node, axes)
        except (NotCovered, ValueError, IndexError, KeyError, TypeError) as error:
            return self._unknown(node, f"{name}: {error}")
        self._settle_single(axes)
        self.edits[node.name] = call.edits
        self.weighted[node.name] = call.weighted
        self.approximate += call.approximate
        self.heads += call.heads
        self.produced += [(_layer(weight), axis, kind) for weight, axis, kind in call.produced]
        return axes

    def _settle_single(self, axes: AxesOfNode) -> None:
        """A dimension of one position must keep it."""
        for axis in (a for one in (axes if isinstance(axes, list) else [axes or ()]) for a in one):
            if axis.size == 1 and not axis.is_frozen:
                self.relations.freeze(axis, "it has one position")

    def _parameter(self, path: str) -> AxesOfNode:
        tensor = attribute(self.graph, path)
        if not isinstance(tensor, Tensor):
            return None
        if id(tensor) not in self.parameters:
            self.parameters[id(tensor)] = path, tuple(self.relations.fresh(n) for n in tensor.shape)
        return self.parameters[id(tensor)][1]

    def _unknown(self, node: Node, reason: str) -> AxesOfNode:
        self.uncovered[node.name] = reason
        for source in node.all_input_nodes:
            self._freeze_node(source, reason)
        return self._frozen(node, reason)

    def _read_as_number(self, node: Node) -> None:
        """A size read from a tensor freezes the dimension, any other number read from it freezes all of it."""
        if "sym_size" in str(node.target):
            axes = self.axes.get(node.all_input_nodes[0].name)
            if isinstance(axes, tuple) and isinstance(node.args[1], int):
                self.relations.freeze(axes[node.args[1]], "its size is used as a number")
                return
        for source in node.all_input_nodes:
            self._freeze_node(source, f"{node.target} reads it")

    def _freeze_node(self, node: Node, reason: str) -> None:
        axes = self.axes.get(node.name)
        for one in axes if isinstance(axes, list) else [axes or ()]:
            for axis in one:
                self.relations.freeze(axis, reason)

    def _frozen(self, node: Node, reason: str) -> AxesOfNode:
        found = [
            tuple(self.relations.frozen(*_order(static_size(size), reason)) for size in shape)
            for shape in shapes_of(node)
        ]
        return found if isinstance(node.meta.get("val"), (tuple, list)) else found[0]


def _order(size: tuple[int, bool], reason: str) -> tuple[int, str, bool]:
    return size[0], reason, size[1]


def _check_shapes(node: Node, axes: AxesOfNode) -> None:
    """A rule whose axes do not have the sizes of the output did not understand the call."""
    for shape, one in zip(shapes_of(node), axes if isinstance(axes, list) else [axes or ()], strict=True):
        expected = [static_size(size) for size in shape]
        found = [(a.size, a.dynamic) for a in one]
        if found != expected:
            raise NotCovered(f"its rule gives sizes {found} where the output has {expected}")


def _layer(weight: Any) -> str:
    """The module that owns a weight, also a transposed or normalised one."""
    node: Node = weight
    while node.op != "get_attr" and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return str(node.target).removesuffix(".weight")


def _group(walk: _Walk, solution: Solution) -> tuple[Group, ...]:
    slices = _slices(walk, solution)
    origin: dict[int, tuple[str, str]] = {}
    for layer, axis, kind in walk.produced:
        for unit in _units_in(solution, [axis]):
            origin.setdefault(unit, (layer, kind))
    heads = _units_in(solution, walk.heads)
    inside_heads = _beside(walk, solution, heads)
    approximate = _units_in(solution, walk.approximate)
    essential = _essential(walk, solution)
    members: dict[Any, list[Unit]] = {}
    for unit, (layer, kind) in origin.items():
        if unit in essential or unit not in slices:
            continue
        found = tuple(Slice(p, d, tuple(i)) for (p, d), i in slices[unit].items())
        footprint = frozenset((s.parameter, s.dim) for s in found)
        kind = "head" if unit in heads else "head size" if unit in inside_heads else kind
        key = (layer, kind, unit in approximate, footprint)
        members.setdefault(key, []).append(Unit(unit, found))
    groups: list[Group] = []
    seen: dict[str, int] = {}
    for (layer, kind, inexact, _), units in members.items():
        seen[layer] = seen.get(layer, 0) + 1
        name = layer if seen[layer] == 1 else f"{layer}#{seen[layer]}"
        groups.append(Group(name, kind, tuple(units), inexact))
    return tuple(groups)


def _slices(walk: _Walk, solution: Solution) -> dict[int, dict[tuple[str, int], list[int]]]:
    """For every unit the parameter dimensions it touches, with the indices."""
    found: dict[int, dict[tuple[str, int], list[int]]] = {}
    for path, axes in walk.parameters.values():
        for dim, axis in enumerate(axes):
            for index, units in enumerate(solution.units(axis)):
                for unit in units:
                    found.setdefault(unit, {}).setdefault((path, dim), []).append(index)
    return found


def _beside(walk: _Walk, solution: Solution, heads: dict[int, None]) -> set[int]:
    """Units that share positions with heads: the elements within them."""
    found: set[int] = set()
    for _, axis, _ in walk.produced:
        for units in solution.units(axis):
            if any(u in heads for u in units):
                found |= {u for u in units if u not in heads}
    return found


def _units_in(solution: Solution, axes: Iterable[Axis]) -> dict[int, None]:
    return dict.fromkeys(unit for axis in axes for units in solution.units(axis) for unit in units)


def _essential(walk: _Walk, solution: Solution) -> set[int]:
    """Units that alone make up some dimension: without them it would be empty."""
    found: set[int] = set()
    for axis in all_axes(walk.axes):
        common: set[int] | None = None
        for units in solution.units(axis):
            common = set(units) if common is None else common & set(units)
            if not common:
                break
        found |= common or set()
    return found


def all_axes(axes: dict[str, AxesOfNode]) -> list[Axis]:
    """Every axis once that is not frozen from the start."""
    unique: dict[bytes, Axis] = {}
    for of_node in axes.values():
        for one in of_node if isinstance(of_node, list) else [of_node or ()]:
            for axis in one:
                if not axis.is_frozen:
                    unique.setdefault(np.asarray(axis.positions).tobytes(), axis)
    return list(unique.values())


def parameter_axes(channels: Channels) -> dict[str, tuple[Axis, ...]]:
    """Axes of every parameter and buffer the graph reads, by path (a shared tensor under each of its paths)."""
    found: dict[str, tuple[Axis, ...]] = {}
    for node in channels.graph.graph.nodes:
        axes = channels.axes.get(node.name)
        if node.op == "get_attr" and isinstance(axes, tuple):
            found[str(node.target)] = axes
    return found
