"""Operators that multiply and sum over a shared axis: linear layers, convolutions, matrix products, attention."""

import math

import numpy as np

from hasten.graph.relations import Axis
from hasten.graph.rules.call import Axes, Call, NotCovered, Rule


def linear(call: Call) -> Axes:
    """[..., I] x [O, I] -> [..., O]."""
    x, weight, bias = call.axes("input"), call.axes("weight"), call.axes_or_none("bias")
    if len(weight) != 2:
        raise NotCovered("the weight is not a matrix")
    call.tie(x[-1], weight[1])
    if bias is not None:
        call.tie(weight[0], bias[0])
    call.weighted.append((call["input"], len(x) - 1))
    call.produced.append((call["weight"], weight[0], "neuron"))
    return (*x[:-1], weight[0])


def convolution(call: Call) -> Axes:
    """[N, I, ...] x [O, I / groups, ...] -> [N, O, ...]; transposed: [I, O / groups, ...]."""
    x, weight, bias = call.axes("input"), call.axes("weight"), call.axes_or_none("bias")
    transposed = bool(call["transposed"]) if "transposed" in call else "transpose" in str(call.node.target)
    spatial = len(weight) - 2
    lead, channels = x[: len(x) - spatial - 1], x[len(x) - spatial - 1]
    call.freeze(x[len(x) - spatial :])
    call.freeze(weight[2:])
    out = _grouped(call, channels, weight, transposed)
    if bias is not None:
        call.tie(out, bias[0])
    call.weighted.append((call["input"], len(x) - spatial - 1))
    call.produced.append((call["weight"], out, "filter"))
    return (*lead, out, *(call.fixed(d) for d in range(-spatial, 0)))


def _grouped(call: Call, channels: Axis, weight: Axes, transposed: bool) -> Axis:
    """Tie the weight to the input channels and return the axis of the output channels."""
    groups = call["groups"]
    if groups == 1:
        call.tie(channels, weight[0 if transposed else 1])
        return weight[1 if transposed else 0]
    group = call.relations.fresh(groups)
    call.edit("groups", lambda kept: kept.size(group))
    if transposed:
        call.relations.product(channels, [group, call.relations.fresh(channels.size // groups)])
        call.tie(channels, weight[0])
        return call.relations.merge([group, weight[1]])
    call.relations.product(channels, [group, weight[1]])
    call.relations.product(weight[0], [group, call.relations.fresh(weight[0].size // groups)])
    return weight[0]


def matmul(call: Call) -> Axes:
    """[..., M, K] x [..., K, N] -> [..., M, N] with broadcast leading axes; vectors as in `torch.matmul`."""
    left, right = call.node.all_input_nodes[0], call.node.all_input_nodes[-1]
    a, b = call.axes_of(left), call.axes_of(right)
    if len(a) == 1 and len(b) == 1:
        call.tie(a[0], b[0])
        return ()
    if len(b) == 1:
        call.tie(a[-1], b[0])
        return a[:-1]
    call.tie(a[-1], b[-2])
    if right in call.parametric and len(b) == 2:
        call.weighted.append((left, len(a) - 1))
        call.produced.append((right, b[-1], "neuron"))
    elif left in call.parametric and len(a) == 2:
        call.weighted.append((right, len(b) - 2))
        call.produced.append((left, a[-2], "neuron"))
    if len(a) == 1:
        return (*b[:-2], b[-1])
    batch = call.broadcast([a[:-2], b[:-2]])
    if len(b) > 2 and len(a) > 2:
        call.heads += batch
    return (*batch, a[-2], b[-1])


def addmm(call: Call) -> Axes:
    """bias + [.., M, K] x [.., K, N]; also the batched form."""
    a, b = (call.axes("mat1"), call.axes("mat2")) if "mat1" in call else (call.axes("batch1"), call.axes("batch2"))
    call.tie(a[-1], b[-2])
    batch = call.broadcast([a[:-2], b[:-2]])
    out = (*batch, a[-2], b[-1])
    if len(a) == 2:
        call.weighted.append((call["mat1"], 1))
        call.produced.append((call["mat2"], b[-1], "neuron"))
    else:
        call.heads += batch
    return call.broadcast([out, call.axes("self")])


def attention(call: Call) -> Axes:
    """Scaled dot-product attention: query [..., H, L, E], key [..., G, S, E], value [..., G, S, V] -> [..., H, L, V].

    Heads leave together in query, key and value; with grouped queries, H = G x (queries per group). The default scale
    1 / sqrt(E) is a constant of the trained model, so it is written out when E shrinks.
    """
    query, key, value = call.axes("query"), call.axes("key"), call.axes("value")
    mask = call.axes_or_none("attn_mask")
    call.tie(query[-1], key[-1])
    call.freeze([query[-2], key[-2], value[-2]], "attention normalises over it")
    lead = call.broadcast([key[:-2], value[:-2]])
    if call["enable_gqa"] and query[-3].size != key[-3].size:
        repeats = call.relations.fresh(query[-3].size // key[-3].size)
        call.relations.product(query[-3], [lead[-1], repeats])
        lead = (*call.broadcast([query[:-3], lead[:-1]]), query[-3])
    else:
        lead = call.broadcast([query[:-2], lead])
    if mask is not None:
        call.broadcast([lead, mask[:-2]])
        call.freeze(mask[-2:], "attention normalises over it")
    call.heads += lead
    if call["scale"] is None:
        scale = 1.0 / math.sqrt(query[-1].size)
        call.edit("scale", lambda kept: scale if kept.size(query[-1]) < query[-1].size else None)
    return (*lead, query[-2], value[-1])


def einsum(call: Call) -> Axes:
    """Axes with one letter are tied; an ellipsis or a letter repeated within an operand is not covered."""
    equation = call["equation"].replace(" ", "")
    if "..." in equation or "->" not in equation:
        raise NotCovered(f"einsum equation {equation!r}")
    inputs, output = equation.split("->")
    operands = [call.axes_of(t) for t in call["tensors"]]
    met: dict[str, list[Axis]] = {}
    for letters, axes in zip(inputs.split(","), operands, strict=True):
        if len(set(letters)) != len(letters):
            raise NotCovered(f"einsum equation {equation!r}")
        for letter, axis in zip(letters, axes, strict=True):
            met.setdefault(letter, []).append(axis)
    axis_of = {letter: call.broadcast([(axis,) for axis in axes])[0] for letter, axes in met.items()}
    named = inputs.split(",")
    if len(named) == 2:
        call.heads += [axis_of[c] for c in output if all(c in letters for letters in named)]
        for weight, of, beside, other in zip(call["tensors"], named, named[::-1], call["tensors"][::-1], strict=True):
            if weight in call.parametric and other not in call.parametric:
                call.weighted += [(other, beside.index(c)) for c in of if c in beside and c not in output]
                call.produced += [(weight, axis_of[c], "neuron") for c in of if c not in beside and c in output]
    return tuple(axis_of[letter] for letter in output)


def bilinear(call: Call) -> Axes:
    """[..., I] x [O, I, J] x [..., J] -> [..., O]."""
    a, b, weight, bias = call.axes("input1"), call.axes("input2"), call.axes("weight"), call.axes_or_none("bias")
    call.tie(a[-1], weight[1])
    call.tie(b[-1], weight[2])
    call.weighted += [(call["input1"], len(a) - 1), (call["input2"], len(b) - 1)]
    call.produced.append((call["weight"], weight[0], "neuron"))
    if bias is not None:
        call.tie(weight[0], bias[0])
    return (*call.broadcast([a[:-1], b[:-1]]), weight[0])


def outer(call: Call) -> Axes:
    """[I] x [J] -> [I, J]."""
    return (call.axes("self")[0], call.axes("vec2")[0])


def embedding(call: Call) -> Axes:
    """[V, D] looked up by [...] indices -> [..., D]; rows are named by index, so they stay."""
    weight, indices = call.axes("weight"), call.axes("indices")
    call.freeze(weight[:1], "indices name its positions")
    call.produced.append((call["weight"], weight[1], "neuron"))
    return (*indices, weight[1])


def recurrent(call: Call) -> list[Axes]:
    """RNN, GRU, LSTM over [batch, time, I]: gates share the hidden units, which all layers and directions share too.

    One state tensor [layers * directions, batch, H] holds the hidden states of all layers, so unit j leaves everywhere.
    """
    layers, both = call["num_layers"], 2 if call["bidirectional"] else 1
    states = call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    states = [call.axes_of(s) for s in states]
    parameters = [call.axes_of(p) for p in call["params"]]
    x, hidden = call.axes("input"), states[0][-1]
    per_cell = 4 if call["has_biases"] else 2
    if len(parameters) != per_cell * layers * both:
        raise NotCovered("projected hidden states")
    for state in states:
        call.freeze(state[:1])
        call.tie(state[-1], hidden)
    below = x[-1]
    for cell in range(layers * both):
        weights = parameters[cell * per_cell : (cell + 1) * per_cell]
        call.tie(weights[0][1], below)
        call.tie(weights[1][1], hidden)
        for rows in weights:
            gates = rows[0].size // hidden.size
            for gate in range(gates):
                call.tie(rows[0].take(slice(gate * hidden.size, (gate + 1) * hidden.size)), hidden)
        if cell % both == both - 1:
            below = Axis(np.tile(hidden.positions, both))
    call.weighted.append((call["input"], len(x) - 1))
    call.produced.append((call["params"][0], hidden, "neuron"))
    return [(*x[:-1], below), *states]


_CONVOLUTIONS = "convolution conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"
_MATMULS = "matmul mm bmm mv dot"

RULES: dict[str, Rule] = (
    dict.fromkeys(_CONVOLUTIONS.split(), convolution)
    | dict.fromkeys(_MATMULS.split(), matmul)
    | {
        "linear": linear,
        "addmm": addmm,
        "baddbmm": addmm,
        "scaled_dot_product_attention": attention,
        "einsum": einsum,
        "bilinear": bilinear,
        "outer": outer,
        "embedding": embedding,
        "gru": recurrent,
        "lstm": recurrent,
        "rnn_tanh": recurrent,
        "rnn_relu": recurrent,
    }
)
