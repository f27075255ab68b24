"""Write ONNX in half the time: `torch.onnx.export` without what it does anew every time, or to all nodes for a few.

The operators it knows are the same every time, and most nodes of a captured graph need no decomposition, while
`ExportedProgram.run_decompositions` traces every one of them once more: that takes longer than the capture itself.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

Table = Mapping[Any, Callable[..., Any]]


class _NotByItself(Exception):
    """A node cannot be decomposed without the others."""


def decompose_by_node(program: ExportedProgram) -> ExportedProgram:
    """Let `program.run_decompositions(table)` trace only the nodes whose operator is in `table`.

    Where that is not enough, because a node writes in place or holds a graph, all are traced as ever. The program
    itself is changed.
    """
    trace_all = program.run_decompositions

    def run_decompositions(table: Table | None = None) -> ExportedProgram:
        try:
            if table is None or not all(map(_is_plain, program.graph.nodes)):
                raise _NotByItself
            table = dict(table)  # once, as `make_fx` wants it
            for node in list(program.graph.nodes):
                if _is_composite(node, table):
                    _decompose(program.graph, node, table)
            program.graph.eliminate_dead_code()
            program.graph_module.recompile()
        except Exception:  # what cannot be traced by itself may be with the others; else this raises
            whole: ExportedProgram = trace_all(table)
            return whole
        return program

    vars(program)["run_decompositions"] = run_decompositions
    return program


@contextlib.contextmanager
def remembered_operators() -> Iterator[None]:
    """Within it, `torch.onnx.export` takes the operators that it knows from the last time."""
    with contextlib.ExitStack() as stack:
        # A library that was imported meanwhile has operators of its own.
        for owner, name, remembered in _remembered(len(torch._C._dispatch_get_all_op_names())):
            stack.enter_context(mock.patch.object(owner, name, remembered))
        yield


@functools.lru_cache(maxsize=1)
def _remembered(operators_count: int) -> list[tuple[Any, str, Any]]:
    """What the exporter calls anew each time: where it is, its name, and one that calls it once per argument."""
    try:
        from torch.onnx._internal.exporter import _decomp
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        make_table = _decomp.create_onnx_friendly_decomposition_table
        table_of = functools.cache(lambda operators: make_table(set(operators)))
        return [
            (ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib))),
            (_decomp, make_table.__name__, lambda operators: table_of(frozenset(operators))),
        ]
    except (ImportError, AttributeError):  # another version of PyTorch: slower, but no worse
        return []


def _is_plain(node: Node) -> bool:
    """Whether a node only computes: it writes nothing in place, and holds no graph or constant of its own."""
    if isinstance(node.target, OpOverload):
        return not node.target._schema.is_mutable
    # What is not an operator of PyTorch's is arithmetic on sizes.
    return node.op in ("placeholder", "output") or getattr(node.target, "__module__", "") == "_operator"


def _is_composite(node: Node, table: Table) -> bool:
    """Whether `run_decompositions` would decompose a node: some that are not in the table cannot be kept."""
    from torch._export.utils import _is_cia_op, _is_preservable_cia_op

    overload = node.target
    if node.op != "call_function" or not isinstance(overload, OpOverload):
        return False
    return overload in table or (_is_cia_op(overload) and not _is_preservable_cia_op(overload))


def _decompose(graph: Graph, node: Node, table: dict[Any, Callable[..., Any]]) -> None:
    """Put what a node stands for in its place."""
    meaning: Any = table.get(node.target, node.target)
    inputs = node.all_input_nodes
    values = [x.meta["val"] for x in inputs]

    def called(*given: Any) -> Any:
        known = dict(zip(inputs, given, strict=True))
        args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
        return meaning(*args, **kwargs)

    mode = detect_fake_mode(values)
    with torch.no_grad(), mode or contextlib.nullcontext():
        parts = make_fx(called, decomposition_table=table)(*values).graph
    if not all(map(_is_plain, parts.nodes)):
        raise _NotByItself
    with graph.inserting_before(node):
        copies: dict[Node, Node] = dict(zip((x for x in parts.nodes if x.op == "placeholder"), inputs, strict=True))
        for part in parts.nodes:
            if part.op == "call_function":
                copies[part] = graph.node_copy(part, copies.__getitem__)
    (result,) = next(iter(reversed(parts.nodes))).args
    new = map_arg(result, copies.__getitem__)
    if isinstance(new, Node):
        _replace(node, new)
    else:
        for user in list(node.users):
            _replace(user, new[user.args[1]])
        graph.erase_node(node)


def _replace(old: Node, new: Node) -> None:
    returned = any(user.op == "output" for user in old.users)
    if returned and new.op == "placeholder":
        raise _NotByItself
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)
    if returned:  # a program knows its outputs by name
        new.name = old.name
