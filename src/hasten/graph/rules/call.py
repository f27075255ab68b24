"""One operator call as its rule sees it: arguments by name, axes of tensors, and how to patch the call after a cut."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch.fx import Node

from hasten.graph.relations import Axis, Relations

Axes = tuple[Axis, ...]
"""The axes of one tensor, one per dimension."""

Result = Axes | list[Axes]
"""What a rule returns: the axes of its output, or a list of them for an operator with several outputs."""


class NotCovered(Exception):
    """Raised by a rule for a use of its operator that it does not understand; everything the call meets is frozen."""


class Kept(Protocol):
    """What a cut leaves of axes; handed to edits."""

    def mask(self, axis: Axis) -> torch.Tensor:
        """[n] bool, True where a position stays."""
        ...

    def size(self, axis: Axis) -> int:
        """How many positions stay."""
        ...


Edit = Callable[[Node, Kept], None]
Rule = Callable[["Call"], Result]


class Call:
    """A call of an ATen operator during analysis.

    Attributes:
        node: The call.
        parametric: Nodes computed from parameters alone: weights, also transposed or normalised ones.
        relations: Where rules state ties, products and frozen axes.
        edits: Functions that patch the call's arguments after a cut; rules append to it.
        approximate: Axes whose removal changes a statistic taken over them (a mean, a norm); rules append to it.
        weighted: (argument node, dimension) of activations that a parameter contracts; rules append to it.
        produced: (weight node, axis of its outputs, kind of unit: "filter" or "neuron"); rules append to it.
        heads: Axes that separate attention heads; rules append to it.
    """

    def __init__(self, node: Node, relations: Relations, axes_of: Callable[[Node], Any], parametric: set[Node]) -> None:
        self.node = node
        self.parametric = parametric
        self.relations = relations
        self.edits: list[Edit] = []
        self.approximate: list[Axis] = []
        self.weighted: list[tuple[Node, int]] = []
        self.produced: list[tuple[Any, Axis, str]] = []
        self.heads: list[Axis] = []
        self._axes_of = axes_of
        self._arguments = arguments(node)

    def __getitem__(self, name: str) -> Any:
        """The argument called `name` in the operator's schema, or its default."""
        return self._arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The argument called `name`, or `default` if the operator has none of that name."""
        return self._arguments.get(name, default)

    def __contains__(self, name: str) -> bool:
        return name in self._arguments

    def axes(self, name: str) -> Axes:
        """Axes of the tensor argument `name`; raises `NotCovered` if it is not one tensor."""
        found = self.axes_or_none(name)
        if found is None:
            raise NotCovered(f"`{name}` is not a tensor")
        return found

    def axes_or_none(self, name: str) -> Axes | None:
        """Axes of the tensor argument `name`, or None when it was left out."""
        value = self[name]
        return None if value is None else self.axes_of(value)

    def axes_of(self, value: Any) -> Axes:
        """Axes of any tensor-valued node; raises `NotCovered` for anything else."""
        found = self._axes_of(value) if isinstance(value, Node) else None
        if not isinstance(found, tuple):
            raise NotCovered("an argument is not a tensor")
        return found

    def tensors(self) -> list[Axes]:
        """Axes of every tensor argument, in order of the schema."""
        found = (self._axes_of(v) for v in self._arguments.values() if isinstance(v, Node))
        return [axes for axes in found if isinstance(axes, tuple)]

    @property
    def shape(self) -> tuple[Any, ...]:
        """Shape of the (first) output, symbolic sizes included."""
        return shapes_of(self.node)[0]

    def fixed(self, dimension: int, reason: str = "it is not a channel dimension") -> Axis:
        """A frozen axis for one dimension of the output."""
        size, dynamic = static_size(self.shape[dimension])
        return self.relations.frozen(size, reason, dynamic)

    def freeze(self, axes: Iterable[Axis], reason: str = "it is not a channel dimension") -> None:
        """Never remove positions of `axes`."""
        for axis in axes:
            self.relations.freeze(axis, reason)

    def tie(self, a: Axis, b: Axis) -> Axis:
        """Tie two axes of one size and return the first."""
        if a.size != b.size or a.dynamic != b.dynamic:
            raise NotCovered(f"sizes {a.size} and {b.size} do not match")
        self.relations.tie(a, b)
        return a

    def tie_all(self, axes: Sequence[Axis]) -> Axis:
        """Tie axes of one size together and return the first."""
        for other in axes[1:]:
            self.tie(axes[0], other)
        return axes[0]

    def edit(self, name: str, value: Callable[[Kept], Any]) -> None:
        """After a cut, set the argument `name` to `value(kept)`."""
        self.edits.append(lambda node, kept: set_argument(node, name, value(kept)))

    def broadcast(self, operands: Sequence[Axes]) -> Axes:
        """Axes of operands broadcast against each other; those that meet are tied."""
        rank = max((len(o) for o in operands), default=0)
        return tuple(self._meet([o[d] for o in operands if len(o) >= -d]) for d in range(-rank, 0))

    def _meet(self, column: list[Axis]) -> Axis:
        wide = [a for a in column if a.size > 1 or a.dynamic]
        if not wide:
            return column[0]
        for axis in column:
            if axis.size == 1 and not axis.dynamic:
                self.relations.freeze(axis, "it has one position")
        return self.tie_all(wide)


def arguments(node: Node) -> dict[str, Any]:
    """Arguments of an ATen call by their names in its schema, defaults included."""
    target: Any = node.target
    found: dict[str, Any] = {}
    for index, argument in enumerate(target._schema.arguments):
        if index < len(node.args):
            found[argument.name] = node.args[index]
        else:
            found[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return found


def set_argument(node: Node, name: str, value: Any) -> None:
    """Set the argument of an ATen call that its schema calls `name`."""
    target: Any = node.target
    names = [argument.name for argument in target._schema.arguments]
    index = names.index(name)
    if index < len(node.args):
        node.update_arg(index, value)
    else:
        node.update_kwarg(name, value)


def retarget(node: Node, target: Any, args: tuple[Any, ...]) -> None:
    """Turn the call into one of another operator."""
    node.target = target
    node.args = args
    node.kwargs = {}


def scale_output(node: Node, factor: float) -> None:
    """Multiply what the call gives by a number, for all that read it."""
    with node.graph.inserting_after(node):
        scaled = node.graph.call_function(torch.ops.aten.mul.Tensor, (node, factor))
    scaled.meta = dict(node.meta)
    node.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)


def shapes_of(node: Node) -> list[tuple[Any, ...]]:
    """Shapes of the tensors a node gives; a non-tensor among several outputs has the shape ()."""
    value = node.meta.get("val")
    many = value if isinstance(value, (tuple, list)) else [value]
    return [tuple(v.shape) if isinstance(v, torch.Tensor) else () for v in many]


def static_size(size: Any) -> tuple[int, bool]:
    """(number of positions, whether the size is symbolic) of a size; 12 * batch has 12 positions that repeat."""
    if isinstance(size, torch.SymInt):
        expression: Any = size.node.expr
        if expression.is_number:
            return int(expression), False
        coefficient, rest = expression.as_coeff_Mul()
        return (int(coefficient), True) if coefficient.is_Integer and rest.is_Symbol else (1, True)
    return int(size), False


def normalize(dimension: int, rank: int) -> int:
    """A dimension counted from the front."""
    return dimension % rank if rank else 0
