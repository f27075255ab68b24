"""Operators that take, join or shift positions of a dimension: cat, split, slice, select, index, pad, roll."""

from typing import Any

import numpy as np
import torch
from torch.fx import Node

from hasten.graph.relations import Axis
from hasten.graph.rules.call import Axes, Call, Kept, NotCovered, Rule, retarget, set_argument, shapes_of

_aten = torch.ops.aten


def cat(call: Call) -> Axes:
    """Tensors joined along one dimension; the others are tied."""
    parts = [call.axes_of(t) for t in call["tensors"]]
    d = call["dim"] % max(len(p) for p in parts)
    parts = [p for p in parts if len(p) > d]
    if any(p[d].dynamic for p in parts):
        call.freeze([p[d] for p in parts], "it is joined with a dimension of symbolic size")
        joined = call.fixed(d, "it is joined with a dimension of symbolic size")
    else:
        joined = Axis(np.concatenate([p[d].positions for p in parts]))
    rank = len(parts[0])
    return tuple(joined if i == d else call.tie_all([p[i] for p in parts]) for i in range(rank))


def stack(call: Call) -> Axes:
    """Tensors joined along a new dimension."""
    parts = [call.axes_of(t) for t in call["tensors"]]
    axes = [call.tie_all(list(column)) for column in zip(*parts, strict=True)]
    axes.insert(call["dim"] % (len(axes) + 1), call.relations.frozen(len(parts), "it is not a channel dimension"))
    return tuple(axes)


def split(call: Call) -> list[Axes]:
    """split, chunk, split_with_sizes, tensor_split: one dimension cut into runs of any sizes."""
    x = call.axes("self")
    d = call["dim"] % len(x)
    if x[d].dynamic:
        raise NotCovered("the dimension has symbolic size")
    parts, start = [], 0
    for shape in shapes_of(call.node):
        parts.append(x[d].take(slice(start, start + int(shape[d]))))
        start += int(shape[d])

    def edit(node: Node, kept: Kept) -> None:
        retarget(node, _aten.split_with_sizes.default, (node.args[0], [kept.size(p) for p in parts], d))

    if parts and start == x[d].size:
        call.edits.append(edit)
    return [(*x[:d], part, *x[d + 1 :]) for part in parts]


def unbind(call: Call) -> list[Axes]:
    """One dimension taken apart."""
    x = call.axes("self")
    d = call["dim"] % len(x)
    call.freeze([x[d]])
    return [(*x[:d], *x[d + 1 :])] * len(shapes_of(call.node))


def slice_(call: Call) -> Axes:
    """Positions start, start + step, ... below end of one dimension."""
    x = call.axes("self")
    d, step = call["dim"] % len(x), call["step"]
    return _run(call, x, d, call["start"], call["end"], step)


def narrow(call: Call) -> Axes:
    """A run of one dimension by its start and length."""
    x, start, length = call.axes("self"), call["start"], call["length"]
    if not isinstance(start, int) or not isinstance(length, int):
        raise NotCovered("the run has symbolic ends")
    return _run(call, x, call["dim"] % len(x), start, start + length, 1)


def _run(call: Call, x: Axes, d: int, start: Any, end: Any, step: Any) -> Axes:
    axis = x[d]
    if (start in (None, 0)) and isinstance(end, int) and end > 2**40 and step == 1:
        return x
    if axis.dynamic or not all(v is None or isinstance(v, int) for v in (start, end, step)):
        call.freeze([axis], "it is cut at a symbolic place")
        return (*x[:d], call.fixed(d, "it is cut at a symbolic place"), *x[d + 1 :])
    picked = np.arange(axis.size)[slice(start, end, step)]
    taken = axis.take(picked)
    if step != 1:
        call.freeze([axis], "it is taken in steps")
    first, past = (int(picked[0]), int(picked[-1]) + 1) if len(picked) else (0, 0)
    before, inside = axis.take(slice(first)), axis.take(slice(first, past))

    def edit(node: Node, kept: Kept) -> None:
        low = kept.size(before)
        retarget(node, _aten.slice.Tensor, (node.args[0], d, low, low + kept.size(inside), 1))

    if step == 1:
        call.edits.append(edit)
    return (*x[:d], taken, *x[d + 1 :])


def select(call: Call) -> Axes:
    """One position of one dimension, which therefore keeps all of them."""
    x = call.axes("self")
    d = call["dim"] % len(x)
    call.freeze([x[d]], "one of its positions is selected by number")
    return (*x[:d], *x[d + 1 :])


def index(call: Call) -> Axes:
    """Tensor indexing: indexed dimensions and the indices stay as they are, the other dimensions pass."""
    x, indices = call.axes("self"), call["indices"]
    given = [i for i, one in enumerate(indices) if one is not None]
    if any("bool" in str(indices[i].meta["val"].dtype) for i in given):
        raise NotCovered("indices are a mask")
    wanted = [call.axes_of(indices[i]) for i in given]
    for axes in [*wanted, [x[i] for i in given]]:
        call.freeze(axes, "indices name its positions")
    found = call.broadcast(wanted)
    rest = [i for i in range(len(x)) if i not in given]
    adjacent = given == list(range(given[0], given[-1] + 1))
    place = given[0] if adjacent else 0
    passed = [x[i] for i in rest]
    return (*passed[:place], *found, *passed[place:])


def index_select(call: Call) -> Axes:
    """Positions of one dimension by an index tensor."""
    x = call.axes("self")
    d = call["dim"] % len(x)
    call.freeze([x[d], *call.axes("index")], "indices name its positions")
    return (*x[:d], call.fixed(d, "indices name its positions"), *x[d + 1 :])


def gather(call: Call) -> Axes:
    """Elements along one dimension by an index of the output's shape; dimensions of equal size pass."""
    x, where = call.axes("self"), call.axes("index")
    d = call["dim"] % len(x)
    call.freeze([x[d], where[d]], "indices name its positions")
    axes = []
    for i, (a, b) in enumerate(zip(x, where, strict=True)):
        if i != d and a.size == b.size and a.dynamic == b.dynamic:
            axes.append(call.tie(b, a))
        else:
            call.freeze([a, b], "indices name its positions")
            axes.append(b)
    return tuple(axes)


def pad(call: Call) -> Axes:
    """Positions added at the ends of dimensions; constant ones (zero channels of a CIFAR ResNet) may be cut again."""
    x, amounts = list(call.axes("self")), call["pad"]
    constant = "mode" not in call or call["mode"] == "constant"
    ends: dict[int, tuple[Axis, Axis]] = {}
    for i in range(len(amounts) // 2):
        d, low, high = len(x) - 1 - i, amounts[2 * i], amounts[2 * i + 1]
        if low == 0 and high == 0:
            continue
        if not constant or x[d].dynamic or not isinstance(low, int) or not isinstance(high, int) or min(low, high) < 0:
            call.freeze([x[d]])
            x[d] = call.fixed(d)
            continue
        ends[i] = tuple(_margin(call, n, x[d]) for n in (low, high))  # type: ignore[assignment]
        x[d] = Axis(np.concatenate([ends[i][0].positions, x[d].positions, ends[i][1].positions]))

    def edit(node: Node, kept: Kept) -> None:
        new = list(amounts)
        for i, (low, high) in ends.items():
            new[2 * i : 2 * i + 2] = [kept.size(low), kept.size(high)]
        set_argument(node, "pad", new)

    call.edits.append(edit)
    return tuple(x)


def _margin(call: Call, size: int, beside: Axis) -> Axis:
    """Padding: around a frozen (spatial) dimension it stays; around channels it may go, one position too."""
    if beside.is_frozen:
        return call.relations.frozen(size, "it is not a channel dimension")
    if size == 1:
        return call.relations.fresh(2).take(slice(1))
    return call.relations.fresh(size)


def reorder(call: Call) -> Axes:
    """flip, roll: positions change places along dimensions, which stay as they are."""
    x = call.axes("self")
    dims = call["dims"] or range(len(x))
    call.freeze([x[d] for d in dims], "its positions change places")
    return x


_SPLITS = "split split_with_sizes chunk tensor_split unsafe_chunk unsafe_split unsafe_split_with_sizes"

RULES: dict[str, Rule] = dict.fromkeys(_SPLITS.split(), split) | {
    "cat": cat,
    "concat": cat,
    "concatenate": cat,
    "stack": stack,
    "unbind": unbind,
    "slice": slice_,
    "narrow": narrow,
    "select": select,
    "index": index,
    "index_select": index_select,
    "gather": gather,
    "pad": pad,
    "constant_pad_nd": pad,
    "flip": reorder,
    "roll": reorder,
}
