"""Write fused attention as the matrix products, scale, mask and softmax it stands for."""

import math
from typing import Any

import torch
from torch.fx import GraphModule, Node

from hasten.graph.duplicate import duplicate
from hasten.graph.parameters import new_parameter

aten = torch.ops.aten

# Large enough that softmax gives exactly zero, small enough that adding it to any score stays finite.
_MASKED = -1e9
# [N, heads, tokens, width].
_RANK = 4


def decompose_attention(graph: GraphModule) -> int:
    """Replace `scaled_dot_product_attention` by its parts, in place; returns how many were replaced.

    Runtimes fuse the plain form, quantization can reach its products, and the guard against rows that are masked
    out completely goes: such a row attends to all keys alike, where the fused operator answers zeros.
    Calls with dropout or with grouped queries stay as they are.
    """
    return _decompose(graph, _attentions(graph))


def decompose_without_heads(graph: GraphModule) -> GraphModule:
    """`graph` with attention that is not over [N, heads, tokens, width] in its parts: ONNX's exporter reads no other.

    A copy, or `graph` itself when all of its attention has heads.
    """
    if all(_has_heads(node) for node in _attentions(graph)):
        return graph
    changed = duplicate(graph)
    _decompose(changed, [node for node in _attentions(changed) if not _has_heads(node)])
    return changed


def _attentions(graph: GraphModule) -> list[Node]:
    return [node for node in graph.graph.nodes if node.target == aten.scaled_dot_product_attention.default]


def _has_heads(node: Node) -> bool:
    return node.args[0].meta["val"].ndim == _RANK  # type: ignore[union-attr, no-any-return]


def _decompose(graph: GraphModule, attentions: list[Node]) -> int:
    plain = [node for node in attentions if _is_plain(node)]
    for node in plain:
        _replace(graph, node)
    if plain:
        graph.graph.eliminate_dead_code()
        graph.recompile()
    return len(plain)


def _argument(node: Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _is_plain(node: Node) -> bool:
    query, key = node.args[0], node.args[1]
    assert isinstance(query, Node)
    assert isinstance(key, Node)
    return (
        _argument(node, 4, "dropout_p", 0.0) == 0.0
        and not _argument(node, 7, "enable_gqa", False)
        and isinstance(query.meta["val"].shape[-1], int)
        and (
            not _argument(node, 5, "is_causal", False)
            or all(isinstance(x.meta["val"].shape[-2], int) for x in (query, key))
        )
    )


def _replace(graph: GraphModule, node: Node) -> None:
    query, key, value = node.args[:3]
    assert isinstance(query, Node)
    assert isinstance(key, Node)
    scale = _argument(node, 6, "scale", None)
    factor = 1 / math.sqrt(query.meta["val"].shape[-1]) if scale is None else scale
    call = graph.graph.call_function
    with graph.graph.inserting_before(node):
        # Scaled on the query: the smaller operand, and the scores' range stays small.
        scaled = call(aten.mul.Tensor, (query, factor))
        scores = call(aten.matmul.default, (scaled, call(aten.transpose.int, (key, -2, -1))))
        mask = _mask(graph, node, query.meta["val"].shape[-2], key.meta["val"].shape[-2])
        if mask is not None:
            scores = call(aten.add.Tensor, (scores, mask))
        result = call(aten.matmul.default, (call(aten.softmax.int, (scores, -1)), value))
    result.meta = dict(node.meta)  # another attention may ask for its shape
    node.replace_all_uses_with(result)
    graph.graph.erase_node(node)


def _mask(graph: GraphModule, node: Node, queries: int, keys: int) -> Node | None:
    """What is added to the scores; None without a mask."""
    if _argument(node, 5, "is_causal", False):
        return new_parameter(graph, "causal_mask", torch.full((queries, keys), _MASKED).triu(1))
    mask = _argument(node, 3, "attn_mask", None)
    if not isinstance(mask, Node) or mask.meta["val"].dtype != torch.bool:
        return mask if isinstance(mask, Node) else None
    # Every layer masks alike: turn the flags into numbers once.
    for user in mask.users:
        if user.target == aten.where.Scalar and user.args == (mask, 0.0, _MASKED):
            return user
    with graph.graph.inserting_after(mask):
        return graph.graph.call_function(aten.where.Scalar, (mask, 0.0, _MASKED))
