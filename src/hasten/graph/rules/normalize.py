"""Operators that take statistics over dimensions: norms, softmax, reductions, scans.

A cut through the dimension that a variance or maximum is taken over changes the statistic, so such axes are marked
approximate. A sum is not changed by removing zeros; a mean of n values of which m stay is made exact by m / n, and the
root mean square of RMSNorm likewise.
"""

import math
from collections.abc import Sequence

import torch
from torch.fx import Node

from hasten.graph.relations import Axis
from hasten.graph.rules.call import (
    Axes,
    Call,
    Kept,
    NotCovered,
    Result,
    Rule,
    arguments,
    scale_output,
    set_argument,
    shapes_of,
)


def batch_norm(call: Call) -> Axes:
    """Per-channel statistics over dimension 1; also instance normalisation."""
    x = call.axes("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        axes = call.axes_or_none(name)
        if axes is not None:
            call.tie(axes[0], x[1])
    instance = "use_input_stats" in call
    if instance or call["training"]:  # statistics of the input itself, over the other dimensions
        call.approximate += x[2:] if instance else [x[0], *x[2:]]
    return x


def layer_norm(call: Call) -> Axes:
    """Layer normalisation over the last dimensions."""
    axes, last = _normalised(call)
    call.approximate += last
    return axes


def rms_norm(call: Call) -> Axes:
    """Normalisation by the root mean square; with epsilon n / m and the output sqrt(n / m) as large it stays exact."""
    axes, last = _normalised(call)
    value = call.node.meta["val"]

    def correct(node: Node, kept: Kept) -> None:
        share = _share(last, kept)
        if share < 1:
            given = arguments(node)["eps"]
            epsilon = torch.finfo(value.dtype).eps if given is None else given
            set_argument(node, "eps", epsilon / share)
            scale_output(node, share**-0.5)

    call.edits.append(correct)
    return axes


def _normalised(call: Call) -> tuple[Axes, Axes]:
    """(axes of the output, those that are normalised over); weight and bias are tied to the latter."""
    x, count = call.axes("input"), len(call["normalized_shape"])
    last = x[len(x) - count :]
    for name in ("weight", "bias"):
        axes = call.axes_or_none(name) if name in call else None
        if axes is not None:
            for a, b in zip(axes, last, strict=True):
                call.tie(a, b)
    call.edit("normalized_shape", lambda kept: [kept.size(a) for a in last])
    return x, last


def group_norm(call: Call) -> Axes:
    """Whole groups leave exactly; channels within the groups change the statistics."""
    x, groups = call.axes("input"), call["num_groups"]
    for name in ("weight", "bias"):
        axes = call.axes_or_none(name)
        if axes is not None:
            call.tie(axes[0], x[1])
    if groups == 1:
        call.approximate.append(x[1])
    elif groups < x[1].size:
        group, within = call.relations.fresh(groups), call.relations.fresh(x[1].size // groups)
        call.relations.product(x[1], [group, within])
        call.approximate.append(within)
        call.edit("num_groups", lambda kept: kept.size(group))
    else:
        call.edit("num_groups", lambda kept: kept.size(x[1]))
    call.freeze(x[2:])
    return x


def softmax(call: Call) -> Axes:
    """softmax, log_softmax, and scans along one dimension."""
    x = call.axes("self")
    if x:
        call.freeze([x[call["dim"]]], "the operator runs along it")
    return x


def reduce_sum(call: Call) -> Axes:
    """Sums (also of powers): removing zeros changes nothing."""
    return _reduced(call)[0]


def reduce_mean(call: Call) -> Axes:
    """The mean of what stays is n / m times that with zeros in place of what goes."""
    axes, gone = _reduced(call)

    def correct(node: Node, kept: Kept) -> None:
        share = _share(gone, kept)
        if share < 1:
            scale_output(node, share)

    call.edits.append(correct)
    return axes


def _share(axes: Sequence[Axis], kept: Kept) -> float:
    """How much of all positions of `axes` together stays."""
    return math.prod(kept.size(a) / a.size for a in axes)


def reduce_statistic(call: Call) -> Axes:
    """Variances, extrema: removing zeros changes the result."""
    axes, gone = _reduced(call)
    call.approximate += gone
    return axes


def reduce_with_indices(call: Call) -> Result:
    """max, min, topk, sort, argmax, ... along a dimension: their indices name positions, so it stays."""
    if "other" in call:  # max(a, b): elementwise
        return call.broadcast(call.tensors())
    axes, gone = _reduced(call)
    call.freeze(gone, "indices name its positions")
    return [axes] * len(shapes_of(call.node)) if _many(call) else axes


def sorted_along(call: Call) -> Result:
    """sort and topk: the dimension stays, or shrinks to k."""
    x = list(call.axes("self"))
    d = call["dim"] % len(x)
    call.freeze([x[d]], "indices name its positions")
    x[d] = call.fixed(d, "indices name its positions")
    return [tuple(x)] * len(shapes_of(call.node)) if _many(call) else tuple(x)


def var_mean(call: Call) -> list[Axes]:
    """Variance and mean together."""
    axes, gone = _reduced(call)
    call.approximate += gone
    return [axes, axes]


def weight_norm(call: Call) -> Result:
    """v * g / |v|, the norm taken over all dimensions but one."""
    v, g, d = call.axes("v"), call.axes("g"), call["dim"]
    call.approximate += [a for i, a in enumerate(v) if i != d]
    for i, (a, b) in enumerate(zip(v, g, strict=True)):
        if i == d:
            call.tie(a, b)
    return [v, g] if _many(call) else v


def _reduced(call: Call) -> tuple[Axes, list[Axis]]:
    """(axes of the output, axes that the reduction runs over)."""
    x = call.tensors()[0]
    dims = call.get("dim")
    if dims is None or dims == []:
        chosen = set(range(len(x)))
    else:
        chosen = {d % len(x) for d in ([dims] if isinstance(dims, int) else dims)} if x else set()
    keep = bool(call["keepdim"]) if "keepdim" in call else False
    if not keep:
        return tuple(a for d, a in enumerate(x) if d not in chosen), [x[d] for d in sorted(chosen)]
    one = call.relations.frozen(1, "it has one position")
    return tuple(one if d in chosen else a for d, a in enumerate(x)), [x[d] for d in sorted(chosen)]


def _many(call: Call) -> bool:
    return isinstance(call.node.meta.get("val"), (tuple, list))


def cross_norm(call: Call) -> Axes:
    """|x|_p: a sum of powers for 0 < p < inf, an extremum otherwise."""
    order = call.get("ord", call.get("p", 2))
    if order is not None and not isinstance(order, (int, float)):
        raise NotCovered(f"norm of order {order!r}")
    axes, gone = _reduced(call)
    if order is not None and not 0 < order < float("inf"):
        call.approximate += gone
    return axes


_ALONG = "softmax _softmax log_softmax _log_softmax cumsum cumprod logcumsumexp"
_STATISTICS = "var std amax amin logsumexp prod any all"
_WITH_INDICES = "max min argmax argmin mode median kthvalue"

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ALONG.split(), softmax),
    **dict.fromkeys(_STATISTICS.split(), reduce_statistic),
    **dict.fromkeys(_WITH_INDICES.split(), reduce_with_indices),
    **dict.fromkeys(("sort", "topk", "argsort"), sorted_along),
    "batch_norm": batch_norm,
    "instance_norm": batch_norm,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "sum": reduce_sum,
    "mean": reduce_mean,
    "norm": cross_norm,
    "linalg_vector_norm": cross_norm,
    "var_mean": var_mean,
    "std_mean": var_mean,
    "_weight_norm": weight_norm,
    "_weight_norm_interface": weight_norm,
}
