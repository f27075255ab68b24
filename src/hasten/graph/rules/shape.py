"""Operators that rearrange dimensions without computing: views, permutations, expansion, repetition, constants."""

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import sympy  # type: ignore[import-untyped]  # torch's own sizes are sympy expressions
from torch.fx import Node

from hasten.graph.relations import Axis
from hasten.graph.rules.call import Axes, Call, Kept, NotCovered, Rule, set_argument, shapes_of, static_size


def view(call: Call) -> Axes:
    """Dimensions are matched in the smallest aligned groups; merged and split ones become products."""
    x = call.tensors()[0]
    before = [
        piece
        for axis, size in zip(x, shapes_of(call.node.all_input_nodes[0])[0], strict=True)
        for piece in _pieces(call, axis, size)
    ]
    after = [_factors(size) for size in call.shape]
    flat = [factor for factors in after for factor in factors]
    found: list[Axis] = []
    for left, right in aligned([size for _, size in before], flat):
        found += _regroup(call, [axis for axis, _ in before[left]], flat[right])
    axes = []
    for factors in after:
        mine, found = found[: len(factors)], found[len(factors) :]
        axes.append(mine[0] if len(mine) == 1 else Axis(mine[1].positions, dynamic=True))
    if "other" in call:  # view_as, reshape_as
        axes = [call.tie(a, b) for a, b in zip(axes, call.axes("other"), strict=True)]
    for argument in ("size", "shape"):
        if argument in call:
            _edit_sizes(call, argument, tuple(axes))
    if "sizes" in call:  # unflatten
        first = call["dim"] % len(x)
        _edit_sizes(call, "sizes", tuple(axes[first : first + len(call["sizes"])]))
    return tuple(axes)


def _factors(size: Any) -> list[Any]:
    """A size as sympy factors, the symbolic one first: 12 * batch is batch times 12."""
    count, dynamic = static_size(size)
    if not dynamic:
        return [sympy.Integer(count)]
    whole = size.node.expr
    return [whole] if count == 1 else [whole / count, sympy.Integer(count)]


def _pieces(call: Call, axis: Axis, size: Any) -> list[tuple[Axis, Any]]:
    """An axis with its size; a dynamic one of several positions as its repetition and its positions."""
    factors = _factors(size)
    if len(factors) == 1:
        return [(axis, factors[0])]
    repetition = call.relations.frozen(1, "its size is symbolic", dynamic=True)
    return [(repetition, factors[0]), (Axis(axis.positions), factors[1])]


def aligned(before: Sequence[Any], after: Sequence[Any]) -> list[tuple[slice, slice]]:
    """The finest runs of dimensions of two shapes with equal products, in order; sizes are sympy expressions."""
    left, right = _prefix_products(before), _prefix_products(after)
    cuts = [(0, 0)]
    for i, product in enumerate(left):
        for j in range(cuts[-1][1], len(right)):
            if product == right[j] and (i, j) != cuts[-1]:
                cuts.append((i, j))
    if cuts[-1] != (len(before), len(after)):
        raise NotCovered(f"shapes {tuple(before)} and {tuple(after)} do not align")
    return [(slice(a, c), slice(b, d)) for (a, b), (c, d) in itertools.pairwise(cuts)]


def _prefix_products(sizes: Sequence[Any]) -> list[Any]:
    products = list(itertools.accumulate(sizes, operator.mul, initial=sympy.Integer(1)))
    if products[-1] == 0:
        raise NotCovered("a dimension has size 0")
    return products


def _regroup(call: Call, before: list[Axis], after: list[Any]) -> list[Axis]:
    """Axes of sizes `after` in place of the axes `before`, which have the same product."""
    wide = [axis for axis in before if axis.size > 1 or axis.dynamic]
    for axis in before:
        if axis.size == 1 and not axis.dynamic:
            call.relations.freeze(axis, "it has one position")
    found = iter(_split_merged(call, wide, [size for size in after if size != 1]))
    return [call.relations.frozen(1, "it has one position") if size == 1 else next(found) for size in after]


def _split_merged(call: Call, wide: list[Axis], sizes: list[Any]) -> list[Axis]:
    if len(wide) == len(sizes) == 1:
        return wide
    reason = "it is merged with a dimension of symbolic size"
    if any(a.dynamic for a in wide) or not all(size.is_Integer for size in sizes):
        call.freeze(wide, reason)
        return [call.relations.frozen(int(s) if s.is_Integer else 1, reason, not s.is_Integer) for s in sizes]
    if not wide:
        return []
    whole = wide[0] if len(wide) == 1 else call.relations.merge(wide)
    return [whole] if len(sizes) == 1 else call.relations.split(whole, [int(size) for size in sizes])


def _edit_sizes(call: Call, argument: str, axes: Axes) -> None:
    """After a cut, write the sizes that stay into a shape argument."""

    def edit(node: Node, kept: Kept) -> None:
        sizes = list(arguments_of(node, argument))
        for i, axis in enumerate(axes):
            if kept.size(axis) < axis.size:
                sizes[i] = resized(node, sizes[i], axis, kept)
        set_argument(node, argument, sizes)

    call.edits.append(edit)


def arguments_of(node: Node, name: str) -> Any:
    """The current argument of a call by its name in the schema."""
    target: Any = node.target
    index = [a.name for a in target._schema.arguments].index(name)
    return node.args[index] if index < len(node.args) else node.kwargs[name]


def resized(node: Node, size: Any, axis: Axis, kept: Kept) -> Any:
    """A size argument after a cut; a symbolic one (12 * batch) is divided by the old count, multiplied by the new."""
    if not axis.dynamic:
        return kept.size(axis)
    if not isinstance(size, Node):
        return size  # -1: inferred from the others
    graph = node.graph
    with graph.inserting_before(node):
        once = graph.call_function(operator.floordiv, (size, axis.size))
        scaled = graph.call_function(operator.mul, (once, kept.size(axis)))
    value = size.meta["val"]
    once.meta["val"] = value // axis.size
    scaled.meta["val"] = once.meta["val"] * kept.size(axis)
    return scaled


def permute(call: Call) -> Axes:
    """Reordered dimensions."""
    x = call.axes("self")
    return tuple(x[d] for d in call["dims"])


def transpose(call: Call) -> Axes:
    """Two dimensions swapped."""
    x = list(call.axes("self"))
    a, b = (call["dim0"], call["dim1"]) if "dim0" in call else (0, 1)
    if x:
        x[a], x[b] = x[b], x[a]
    return tuple(x)


def transpose_matrix(call: Call) -> Axes:
    """`t`, `numpy_T`, `mT`: the last two dimensions swapped (all of them reversed for `numpy_T`)."""
    x = call.axes("self")
    if len(x) > 2 and "numpy_T" in str(call.node.target):
        return x[::-1]
    return (*x[:-2], *x[-2:][::-1])


def movedim(call: Call) -> Axes:
    """Dimensions moved to new places, the others keep their order."""
    x = call.axes("self")
    source, destination = call["source"], call["destination"]
    source = [source] if isinstance(source, int) else list(source)
    destination = [destination] if isinstance(destination, int) else list(destination)
    source, destination = [d % len(x) for d in source], [d % len(x) for d in destination]
    order = [d for d in range(len(x)) if d not in source]
    for to, d in sorted(zip(destination, source, strict=True)):
        order.insert(to, d)
    return tuple(x[d] for d in order)


def unsqueeze(call: Call) -> Axes:
    """A new dimension of size 1."""
    x = list(call.axes("self"))
    x.insert(call["dim"] % (len(x) + 1), call.relations.frozen(1, "it has one position"))
    return tuple(x)


def squeeze(call: Call) -> Axes:
    """Dimensions of size 1 dropped."""
    x = call.axes("self")
    dims = call["dim"] if "dim" in call else range(len(x))
    chosen = {d % len(x) for d in ([dims] if isinstance(dims, int) else dims)} if x else set()
    return tuple(a for d, a in enumerate(x) if d not in chosen or a.size != 1 or a.dynamic)


def expand(call: Call) -> Axes:
    """Dimensions of size 1 repeated; a repeated dimension may be cut on its own."""
    x = call.axes("self")
    shape = call.shape
    axes = []
    for d in range(-len(shape), 0):
        size, dynamic = static_size(shape[d])
        given = x[d] if -d <= len(x) else None
        if given is not None and given.size == size and given.dynamic == dynamic:
            axes.append(given)
        elif dynamic:
            axes.append(call.fixed(d, "its size is symbolic"))
        else:
            axes.append(call.relations.fresh(size))
    if "size" in call:
        _edit_sizes(call, "size", tuple(axes))
        return tuple(axes)
    other = call.axes("other")  # expand_as
    return tuple(call.tie(a, o) for a, o in zip(axes, other, strict=True))


def repeat(call: Call) -> Axes:
    """Whole dimensions repeated one after the other."""
    x, repeats = call.axes("self"), call["repeats" if "repeats" in call else "dims"]
    x = tuple(call.relations.frozen(1, "it has one position") for _ in range(len(repeats) - len(x))) + x
    repeats = [1] * (len(x) - len(repeats)) + list(repeats)
    axes = []
    for d, (axis, times) in enumerate(zip(x, repeats, strict=True)):
        if isinstance(times, Node) and not axis.dynamic:
            axes.append(Axis(axis.positions, dynamic=True))
        elif isinstance(times, int) and not axis.dynamic:
            axes.append(Axis(np.tile(axis.positions, times)))
        elif axis.size == 1 or axis.is_frozen:
            axes.append(call.fixed(d - len(x)))
        else:
            raise NotCovered("a dimension repeated a symbolic number of times")
    return tuple(axes)


def repeat_interleave(call: Call) -> Axes:
    """Every position of one dimension repeated in place."""
    if not isinstance(call["repeats"], int) or call["dim"] is None:
        raise NotCovered("repeats are not one number, or there is no dimension")
    x = list(call.axes("self"))
    d = call["dim"] % len(x)
    if call["output_size"] is not None or x[d].dynamic:
        raise NotCovered("the output size is given")
    x[d] = Axis(np.repeat(x[d].positions, call["repeats"]))
    return tuple(x)


def filled(call: Call) -> Axes:
    """zeros, ones, full, empty and their new_ forms: a constant, which any use may shrink."""
    axes = []
    for size in call.shape:
        count, dynamic = static_size(size)
        fixed = call.relations.frozen(count, "its size is symbolic", dynamic)
        axes.append(fixed if dynamic else call.relations.fresh(count))
    _edit_sizes(call, "size", tuple(axes))
    return tuple(axes)


def numbered(call: Call) -> Axes:
    """arange, eye and other constants whose values depend on the place: fixed."""
    return tuple(call.fixed(d, "its values count its positions") for d in range(len(call.shape)))


def meshgrid(call: Call) -> list[Axes]:
    """Vectors spread over a grid with one dimension for each."""
    axes = [call.axes_of(t)[0] for t in call["tensors"]]
    if "indexing" in call and call["indexing"] == "xy":
        axes[:2] = axes[1::-1]
    call.freeze(axes, "it spans a grid")
    return [tuple(axes)] * len(axes)


def pixel_shuffle(call: Call) -> Axes:
    """[..., C * r * r, H, W] -> [..., C, H * r, W * r]."""
    x, r = call.axes("self"), call["upscale_factor"]
    channels, *inner = call.relations.split(x[-3], [x[-3].size // (r * r), r * r])
    call.freeze(inner)
    call.freeze(x[-2:])
    return (*x[:-3], channels, call.fixed(-2), call.fixed(-1))


def pixel_unshuffle(call: Call) -> Axes:
    """[..., C, H * r, W * r] -> [..., C * r * r, H, W]."""
    x, r = call.axes("self"), call["downscale_factor"]
    call.freeze(x[-2:])
    whole = call.relations.merge([x[-3], call.relations.frozen(r * r, "it is not a channel dimension")])
    return (*x[:-3], whole, call.fixed(-2), call.fixed(-1))


def channel_shuffle(call: Call) -> Axes:
    """[N, g * c, ...] -> [N, c * g, ...]: the channels of g groups interleaved."""
    x, g = call.axes("self"), call["groups"]
    group, within = call.relations.split(x[1], [g, x[1].size // g])
    call.edit("groups", lambda kept: kept.size(group))
    return (x[0], call.relations.merge([within, group]), *x[2:])


_VIEWS = "view reshape _unsafe_view flatten unflatten view_copy _reshape_alias reshape_as view_as"
_FILLED = "zeros ones full empty new_zeros new_ones new_full new_empty rand randn"
_NUMBERED = "arange eye linspace scalar_tensor tril_indices triu_indices"

RULES: dict[str, Rule] = (
    dict.fromkeys(_VIEWS.split(), view)
    | dict.fromkeys(_FILLED.split(), filled)
    | dict.fromkeys(_NUMBERED.split(), numbered)
    | {
        "permute": permute,
        "transpose": transpose,
        "swapaxes": transpose,
        "t": transpose_matrix,
        "numpy_T": transpose_matrix,
        "mT": transpose_matrix,
        "movedim": movedim,
        "unsqueeze": unsqueeze,
        "squeeze": squeeze,
        "expand": expand,
        "expand_as": expand,
        "repeat": repeat,
        "tile": repeat,
        "repeat_interleave": repeat_interleave,
        "meshgrid": meshgrid,
        "pixel_shuffle": pixel_shuffle,
        "pixel_unshuffle": pixel_unshuffle,
        "channel_shuffle": channel_shuffle,
    }
)
