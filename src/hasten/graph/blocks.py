"""Residual blocks of a captured graph: where they begin and end, which of them repeat, and how to leave them out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from hasten.errors import InvalidInput
from hasten.graph.duplicate import duplicate

_ATEN = torch.ops.aten
_ADDITIONS = {_ATEN.add.Tensor, _ATEN.add_.Tensor}
_SAME_VALUE = {
    *(_ATEN.dropout.default, _ATEN.dropout_.default, _ATEN.alias.default, _ATEN.contiguous.default),
    *(_ATEN.to.dtype, _ATEN.to.device, _ATEN.to.dtype_layout, _ATEN._to_copy.default, _ATEN.detach.default),
}
_LONGEST_PERIOD = 4


@dataclass(frozen=True)
class Block:
    """A part of the graph that can be left out: the value of `end` has the shape of `start` and is computed from it.

    Attributes:
        start: Name of the node whose value enters the block.
        end: Name of the node that the block computes; without the block, `start` takes its place.
        inner: Names of the nodes between them, `end` included, in order.
    """

    start: str
    end: str
    inner: tuple[str, ...]


def find_blocks(graph: GraphModule) -> tuple[Block, ...]:
    """Every residual block `x -> x + f(x)` that can be left out, in order.

    A block ends at its addition, or behind the activation or norm that follows, if what enters the block comes from
    the same kind of operator (a ReLU after every block of a ResNet, a layer norm after every part of BERT). An
    addition whose shortcut is itself computed (a projection in a down-sampling block) makes no block.
    """
    nodes = list(graph.graph.nodes)
    ancestors = _ancestors(nodes)
    found = []
    for node in nodes:
        start = _shortcut(node, ancestors)
        if start is None:
            continue
        end = _end(node, start)
        inner = [n for n in nodes if start in ancestors[n] and (n in ancestors[end] or n is end)]
        # A formula such as GELU's x + 0.04 x^3 looks the same but has no weights.
        if any(read.op == "get_attr" for n in inner for read in n.all_input_nodes):
            found.append(Block(start.name, end.name, tuple(n.name for n in inner)))
    return tuple(found)


def find_layers(graph: GraphModule) -> tuple[Block, ...]:
    """`find_blocks`, with blocks that only repeat together joined: attention and feed-forward make one layer."""
    layers: list[Block] = []
    for chain in _chains(graph, find_blocks(graph)):
        period = _period([_signature(graph, block) for block in chain])
        layers += [_joined(chain[i : i + period]) for i in range(0, len(chain), period)]
    return tuple(layers)


def without_blocks(graph: GraphModule, blocks: Iterable[Block]) -> GraphModule:
    """A copy of `graph` in which every block passes on what enters it; what only the blocks used is gone.

    Raises:
        InvalidInput: A block is not of this graph.
    """
    shorter = duplicate(graph)
    nodes = {node.name: node for node in shorter.graph.nodes}
    replaced: dict[Node, Node] = {}
    left_out: set[Node] = set()
    for block in blocks:
        if block.start not in nodes or block.end not in nodes:
            raise InvalidInput(f"A block must be of this graph, but it has no {block.start!r} or no {block.end!r}.")
        start, end = nodes[block.start], nodes[block.end]
        while start in replaced:
            start = replaced[start]
        replaced[end] = start
        left_out.update(nodes[name] for name in block.inner)
        end.replace_all_uses_with(start)
    _erase_dead(shorter, left_out)
    drop_unused_tensors(shorter)
    shorter.recompile()
    return shorter


def drop_unused_tensors(graph: GraphModule) -> None:
    """Delete, in place, the parameters and buffers that no node reads, and the modules that are left empty."""
    used = {str(node.target) for node in graph.graph.nodes if node.op in ("get_attr", "call_module")}
    for prefix, module in list(graph.named_modules(remove_duplicate=False)):
        for name in [*module._parameters, *module._buffers]:
            path = f"{prefix}.{name}" if prefix else name
            if not any(path == u or path.startswith(f"{u}.") for u in used):
                delattr(module, name)
    for path, module in sorted(graph.named_modules(), key=lambda item: -item[0].count(".")):
        if path and path not in used and type(module) is nn.Module and not _holds_anything(module):
            owner, _, name = path.rpartition(".")
            delattr(graph.get_submodule(owner), name)


def _erase_dead(graph: GraphModule, left_out: set[Node]) -> None:
    """Erase what no output needs; an operator that writes into a tensor somebody needs stays, unless left out."""
    nodes = list(graph.graph.nodes)
    ancestors = _ancestors(nodes)
    live = {graph.graph.output_node(), *ancestors[graph.graph.output_node()]}
    for node in nodes:  # in order, so that a write is seen before what follows from it
        written = node.args[0] if node not in left_out and _writes(node) and node.args else None
        if written in live:
            live |= {node, *ancestors[node]}
    for node in reversed(nodes):
        if node not in live and node.op != "placeholder":
            graph.graph.erase_node(node)


def _writes(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _holds_anything(module: nn.Module) -> bool:
    return any(True for _ in module.children()) or bool(module._parameters) or bool(module._buffers)


def _ancestors(nodes: Sequence[Node]) -> dict[Node, set[Node]]:
    ancestors: dict[Node, set[Node]] = {}
    for node in nodes:
        inputs = node.all_input_nodes
        ancestors[node] = set(inputs).union(*(ancestors[i] for i in inputs))
    return ancestors


def _shortcut(node: Node, ancestors: dict[Node, set[Node]]) -> Node | None:
    """The operand of an addition that the other one is computed from, if `node` is an addition of equal shapes."""
    if node.target not in _ADDITIONS or node.kwargs.get("alpha", 1) != 1:
        return None
    operands = [operand for operand in node.args[:2] if isinstance(operand, Node)]
    if len(operands) != 2 or any(_form(operand) is None or _form(operand) != _form(node) for operand in operands):
        return None
    return next((a for a, b in (operands, operands[::-1]) if a in ancestors[b]), None)


def _end(addition: Node, start: Node) -> Node:
    """The activation or norm behind `addition` if `start` comes out of one of the same kind, else `addition`."""
    kind = _origin(start).target
    if kind in _ADDITIONS:
        return addition
    node = addition
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.target is kind and _form(node) == _form(addition):
            return node
        if node.target not in _SAME_VALUE:
            break
    return addition


def _origin(node: Node) -> Node:
    """The node whose value `node` passes on: through casts to the dtype it has and through dropout."""
    while node.target in _SAME_VALUE and _form(node) == _form(node.all_input_nodes[0]):
        node = node.all_input_nodes[0]
    return node


def _form(node: Node) -> Any:
    value = node.meta.get("val")
    return (tuple(str(size) for size in value.shape), value.dtype) if isinstance(value, Tensor) else None


def _chains(graph: GraphModule, blocks: Sequence[Block]) -> list[list[Block]]:
    """Blocks in runs in which one begins where the other ended."""
    origin = {node.name: _origin(node).name for node in graph.graph.nodes}
    chains: list[list[Block]] = []
    for block in blocks:
        if chains and origin[chains[-1][-1].end] == origin[block.start]:
            chains[-1].append(block)
        else:
            chains.append([block])
    return chains


def _signature(graph: GraphModule, block: Block) -> tuple[Any, ...]:
    """The shapes of the tensors that a block reads, in order."""
    inner = set(block.inner)
    nodes = [node for node in graph.graph.nodes if node.name in inner]
    return tuple(str(_form(read)) for node in nodes for read in node.all_input_nodes if read.op == "get_attr")


def _period(signatures: Sequence[Any]) -> int:
    """The smallest number of blocks after which everything repeats at least twice; 1 if nothing does."""
    for period in range(1, _LONGEST_PERIOD + 1):
        whole = len(signatures) % period == 0 and len(signatures) // period > 1
        if whole and all(a == b for a, b in zip(signatures, signatures[period:], strict=False)):
            return period
    return 1


def _joined(blocks: Sequence[Block]) -> Block:
    return Block(blocks[0].start, blocks[-1].end, tuple(name for block in blocks for name in block.inner))
