"""Elementwise operators: tensors broadcast against each other, so the axes that meet are tied."""

from hasten.graph.rules.call import Axes, Call, NotCovered, Rule


def elementwise(call: Call) -> Axes:
    """Any operator that computes each output element from the elements at the same place."""
    operands = call.tensors()
    if not operands:
        raise NotCovered("no tensor among the arguments")
    return call.broadcast(operands)


def like_first(call: Call) -> Axes:
    """An operator whose output has the axes of its first argument (casts, copies, dropout, zeros_like)."""
    return call.tensors()[0]


def prelu(call: Call) -> Axes:
    """One slope for all channels, or one per channel in dimension 1."""
    x, slope = call.axes("self"), call.axes("weight")
    if slope[0].size > 1:
        call.tie(x[1], slope[0])
    return x


def glu(call: Call) -> Axes:
    """The first half gated by the second: position i of one and of the other leave together."""
    x = list(call.axes("self"))
    dimension = call["dim"] % len(x)
    half = x[dimension].size // 2
    x[dimension] = call.tie(x[dimension].take(slice(half)), x[dimension].take(slice(half, None)))
    return tuple(x)


_ELEMENTWISE = """
    where masked_fill rsub __and__ __or__ __xor__ __lshift__ __rshift__ floor_divide hardswish
    log_sigmoid fill true_divide divide multiply subtract softplus logaddexp clip square selu celu absolute negative
    copy greater less greater_equal less_equal not_equal ge gt le lt eq ne relu6 isnan isinf isfinite
    """

_LIKE_FIRST = """
    dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout to _to_copy clone contiguous detach alias
    lift_fresh lift_fresh_copy type_as zeros_like ones_like full_like empty_like
    rand_like randn_like detach_copy
    """

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), elementwise),
    **dict.fromkeys(_LIKE_FIRST.split(), like_first),
    "prelu": prelu,
    "glu": glu,
}
