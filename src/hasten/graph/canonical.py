"""Bring a captured graph to inference form: evaluation mode, no dropout, no in-place operators, no assertions."""

import torch
from torch.fx import GraphModule, Node

from hasten.graph.mode import set_training

aten = torch.ops.aten

_IDENTITY = (aten.dropout.default, aten.dropout_.default, aten.alpha_dropout.default, aten.feature_dropout.default)
_ASSERTIONS = (aten._assert_tensor_metadata.default, aten._assert_async.msg)


def to_inference_form(graph: GraphModule) -> None:
    """Rewrite `graph` in place; its outputs in evaluation mode stay the same.

    An operator that writes to a tensor of which others hold a view stays (`writes_in_place` tells): only a trace knows
    what each of them sees afterwards.
    """
    set_training(graph, False)
    for node in list(graph.graph.nodes):
        if node.target in _IDENTITY:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif node.target in _ASSERTIONS:
            graph.graph.erase_node(node)
        elif _is_in_place(node) and not _is_seen_elsewhere(node):
            _make_functional(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def writes_in_place(graph: GraphModule) -> bool:
    """Whether an operator is left that changes a tensor."""
    return any(_is_in_place(node) for node in graph.graph.nodes)


def _is_seen_elsewhere(node: Node) -> bool:
    """Whether what `node` writes is read afterwards through another name than that of the tensor it is given."""
    root = changed = node.args[0]
    while isinstance(root, Node) and _is_alias(root):
        root = root.args[0]
    names = [root]
    for name in names:
        assert isinstance(name, Node)
        names += [user for user in name.users if _is_alias(user) and user not in names and user is not node]
    return any(node < user for name in names if name is not changed for user in name.users)  # type: ignore[union-attr]


def _is_alias(node: Node) -> bool:
    """Whether the result shares memory with the first argument: a view of it, or itself."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.returns:
        return False
    return node.target._schema.returns[0].alias_info is not None and isinstance(node.args[0], Node)


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
