"""Turn any nn.Module into a live, trainable graph of ATen operators, and a graph back into an ExportedProgram."""

import contextlib
import inspect
import io
import warnings
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node

from hasten.errors import InvalidInput
from hasten.graph.duplicate import duplicate
from hasten.graph.linear_layers import to_linear_layers
from hasten.graph.padding import number_paddings
from hasten.graph.quiet import quiet
from hasten.task import Inputs


def capture(model: nn.Module, example: Inputs) -> GraphModule:
    """Capture `model` in eval mode as a GraphModule of ATen operators with the original parameter names.

    The batch dimension (dimension 0 of every input) is dynamic where the model allows it; `has_dynamic_batch` tells.
    The graph returns a tensor, or a flat tuple of tensors when the model returns several (any nesting). Products with
    a weight, such as GPT-2's, are linear layers in it, whose weights are [out, in]; see `hasten.graph.linear_layers`.

    Args:
        model: Trained module; left as it is.
        example: One batch of positional inputs, batch first.

    Raises:
        InvalidInput: The model cannot be exported, returns no tensor, or its output on `example` is not finite.
    """
    model = duplicate(model).eval()
    with torch.no_grad():
        try:
            reference = model(*example)
        except Exception as error:
            devices = {x.device.type for x in (*model.parameters(), *example)}
            remedy = "Try model(*example) yourself, with the batch as dimension 0"
            if len(devices) > 1:
                remedy = f"They are on {' and '.join(sorted(devices))}: call model.cpu() and use inputs on the CPU"
            raise InvalidInput(
                f"`model` must run on `example`, but raised {type(error).__name__}: {_first_line(error)}. {remedy}."
            ) from error
    _check_finite(reference)
    return capture_as_is(model, example)


def capture_as_is(module: nn.Module, example: Inputs, *, dynamic: bool = True) -> GraphModule:
    """Capture a module in the mode that it is in, such as one with a captured graph inside; see `capture`.

    Args:
        module: Module; left as it is.
        example: One batch of positional inputs, batch first.
        dynamic: Whether the batch dimension may be dynamic.

    Raises:
        InvalidInput: `torch.export` refuses the module, or it returns no tensor.
    """
    graph = _live(export(module, example) if dynamic else _export_fixed(module, example))
    if has_dynamic_batch(graph) and not _runs_at_another_batch(graph, example):
        graph = _live(_export_fixed(module, example))
    number_paddings(graph)
    if to_linear_layers(graph):
        # Traced again, nodes have the names that they have in every later trace, and the shapes that weights have now.
        graph = _live(export(graph, example))
    _flatten_outputs(graph)
    return graph


def export(module: nn.Module, example: Inputs) -> ExportedProgram:
    """`torch.export.export` of a module or a captured graph, with a dynamic batch dimension where it can have one.

    Args:
        module: Module in the mode (train or eval) that the export should have.
        example: One batch of positional inputs, batch first; any batch size.

    Raises:
        InvalidInput: `torch.export` refuses the module.
    """
    if isinstance(module, GraphModule) and not has_dynamic_batch(module):
        return _export_fixed(module, example)
    # A batch of 1 would be specialised to a constant, so trace with 2 or more.
    batch = example if len(example[0]) > 1 else tuple(torch.cat([x, x]) for x in example)
    for dim in (Dim("batch", min=1), Dim.AUTO):
        with contextlib.suppress(Exception):  # the next form may do; the last one reports
            program = _trace(module, batch, tuple({0: dim} for _ in batch))
            # AUTO may silently pin the batch to the traced size.
            if _batch_is_symbolic(_user_inputs(program)):
                return program
    return _export_fixed(module, example)


def export_functional(module: nn.Module, example: Inputs) -> ExportedProgram:
    """`export` without operators that write in place: every view is given what was written through another.

    An empty table decomposes little else: batch norms lose their flag, and what has no effect goes.
    """
    with warnings.catch_warnings():
        # torch warns about its own deprecated internals while tracing.
        warnings.simplefilter("ignore")
        program: ExportedProgram = export(module, example).run_decompositions({})
        return program


def _export_fixed(module: nn.Module, example: Inputs) -> ExportedProgram:
    try:
        return _trace(module, example, None)
    except Exception as error:
        raise InvalidInput(
            f"`model` must be exportable by torch.export, but it raised {type(error).__name__}: {_first_line(error)} "
            "Replace data-dependent Python control flow, or wrap the traceable part of the model."
        ) from error


def _trace(module: nn.Module, inputs: Inputs, shapes: Any) -> ExportedProgram:
    # A failing trace is printed to standard error, besides being raised.
    printed = contextlib.redirect_stderr(io.StringIO())
    with torch.no_grad(), quiet("torch.fx.experimental.symbolic_shapes"), printed:
        return torch.export.export(module, inputs, dynamic_shapes=_per_input(module, shapes), strict=False)


def _live(program: ExportedProgram) -> GraphModule:
    graph = program.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    return graph


def _runs_at_another_batch(graph: GraphModule, example: Inputs) -> bool:
    """Whether a batch called dynamic is: a guard on a product of sizes can still pin it."""
    with torch.no_grad():
        try:
            graph(*(torch.cat([x, x[:1]]) for x in example))
        except Exception:
            return False
    return True


def has_dynamic_batch(graph: GraphModule) -> bool:
    """Whether the graph runs at other batch sizes than the one it was captured with."""
    return _batch_is_symbolic(placeholders(graph))


def placeholders(graph: GraphModule) -> list[Node]:
    """The user's inputs, in order."""
    return [node for node in graph.graph.nodes if node.op == "placeholder"]


def outputs(graph: GraphModule) -> list[Node]:
    """The nodes the graph returns, in order."""
    output = next(iter(reversed(graph.graph.nodes)))
    return [leaf for leaf in pytree.tree_leaves(output.args[0]) if isinstance(leaf, Node)]


def as_tuple(output: Any) -> tuple[Tensor, ...]:
    """A graph's output as a tuple, whether it returned one tensor or several."""
    return output if isinstance(output, tuple) else (output,)


def _per_input(module: nn.Module, shapes: Any) -> Any:
    """Dynamic shapes in the form `torch.export` wants: a `*args` signature takes them as one nested tuple."""
    if shapes is None or isinstance(module, GraphModule):
        return shapes
    first = next(iter(inspect.signature(module.forward).parameters.values()), None)
    return (shapes,) if first is not None and first.kind is inspect.Parameter.VAR_POSITIONAL else shapes


def _user_inputs(program: ExportedProgram) -> list[Node]:
    names = set(program.graph_signature.user_inputs)
    return [node for node in placeholders(program.graph_module) if node.name in names]


def _batch_is_symbolic(inputs: list[Node]) -> bool:
    # A graph read from a file has not been traced: nothing is known to forbid other batch sizes.
    return all("val" not in node.meta or isinstance(node.meta["val"].shape[0], torch.SymInt) for node in inputs)


def _flatten_outputs(graph: GraphModule) -> None:
    node = next(iter(reversed(graph.graph.nodes)))
    leaves = [leaf for leaf in pytree.tree_leaves(node.args[0]) if isinstance(leaf, Node)]
    if not leaves:
        raise InvalidInput("`model` must return at least one tensor, but its graph returns none.")
    result = leaves[0] if len(leaves) == 1 else tuple(leaves)
    node.args = (result,)
    codegen: Any = graph.graph._codegen
    _, spec = pytree.tree_flatten(result)
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=spec)
    # The generated forward flattens what `return` holds, so the node must carry the flat list.
    node.args = (tuple(leaves),)
    graph._out_spec = spec
    graph.recompile()


def _check_finite(output: Any) -> None:
    for index, leaf in enumerate(pytree.tree_leaves(output)):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not torch.isfinite(leaf).all():
            bad = int((~torch.isfinite(leaf)).sum())
            raise InvalidInput(
                f"`model` must give finite outputs on `example`, but output {index} has {bad} of {leaf.numel()} values "
                "that are NaN or infinite. Check the weights and the preprocessing of `example`."
            )


def _first_line(error: BaseException | None) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
