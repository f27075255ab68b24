"""What every ATen operator does to the axes of its tensors, by operator family."""

from typing import Any

import torch

from hasten.graph.rules import contraction, elementwise, normalize, pick, shape, spatial
from hasten.graph.rules.call import Rule

_RULES: dict[str, Rule] = (
    elementwise.RULES | contraction.RULES | shape.RULES | pick.RULES | normalize.RULES | spatial.RULES
)


def rule_for(target: Any) -> Rule | None:
    """The rule of an ATen overload, or None for an unknown one; whatever torch tags as pointwise is elementwise."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    name = target._schema.name.removeprefix("aten::")
    plain = name.removesuffix("_") if not name.startswith("__") else name
    known = _RULES.get(name) or _RULES.get(plain)
    if known is None and torch.Tag.pointwise in target.tags:
        return elementwise.elementwise
    return known
