"""Bring a captured graph to inference form: evaluation mode, no dropout, no in-place operators, no assertions."""

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten

_IDENTITY = (aten.dropout.default, aten.dropout_.default, aten.alpha_dropout.default, aten.feature_dropout.default)
_ASSERTIONS = (aten._assert_tensor_metadata.default, aten._assert_async.msg)
_TRAINING_ARGUMENT = {aten.batch_norm.default: 5, aten.instance_norm.default: 5}


def to_inference_form(graph: GraphModule) -> None:
    """Rewrite `graph` in place; its outputs in evaluation mode stay the same."""
    for node in list(graph.graph.nodes):
        if node.target in _IDENTITY:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif node.target in _ASSERTIONS:
            graph.graph.erase_node(node)
        elif node.target in _TRAINING_ARGUMENT:
            node.update_arg(_TRAINING_ARGUMENT[node.target], False)
        elif _is_in_place(node):
            _make_functional(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _is_in_place(node: Node) -> bool:
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and node.target.namespace == "aten"
        and node.target._opname.endswith("_")
        and not node.target._opname.startswith("_")
        and _functional(node.target) is not None
    )


def _functional(target: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    packet = getattr(aten, target._opname.removesuffix("_"), None)
    return getattr(packet, target._overloadname, None) if packet is not None else None


def _make_functional(node: Node) -> None:
    """What read the mutated tensor after `node` reads the result instead."""
    changed = node.args[0]
    assert isinstance(changed, Node)
    node.target = _functional(node.target)  # type: ignore[arg-type, assignment]
    changed.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node and node < user)
