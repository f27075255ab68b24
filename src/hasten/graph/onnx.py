"""Write a captured graph as one ONNX file: the form that ONNX Runtime, OpenVINO, TensorRT and Ascend read."""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from hasten.errors import Unsupported
from hasten.graph.attention import decompose_without_heads
from hasten.graph.capture import export, has_dynamic_batch, outputs, placeholders
from hasten.graph.onnx_shortcuts import decompose_by_node, remembered_operators
from hasten.graph.quiet import quiet
from hasten.task import Inputs

_PROTOBUF_LIMIT_BYTES = 2**31 - 2**20


def write_onnx(graph: GraphModule, example: Inputs, path: Path, opset: int | None = None) -> None:
    """Write `graph` to `path`, with a dynamic batch dimension where the graph has one.

    For readers that know com.microsoft's operators, pass `packing.pack_products(graph)`.

    Weights are stored inside the file up to protobuf's limit of 2 GiB, beyond it in `<name>.data` beside it.
    Inputs carry the names of the graph's placeholders; outputs are `output_0`, `output_1`, ...

    Args:
        graph: A captured graph.
        example: One batch.
        path: The file.
        opset: Version of ONNX's operators, 18 or more; None: what the exporter prefers.

    Raises:
        Unsupported: The graph has an operator that ONNX cannot express.
    """
    size_bytes = sum(t.numel() * t.element_size() for t in graph.state_dict().values())
    names_in = [node.name for node in placeholders(graph)]
    names_out = [f"output_{index}" for index in range(len(outputs(graph)))]
    # The exporter prints progress and warns about its own internals; neither is of use to a user.
    with quiet("torch.onnx", "onnxscript", "onnx_ir", categories=(Warning,)), contextlib.redirect_stdout(io.StringIO()):
        try:
            with remembered_operators():
                program = torch.onnx.export(
                    decompose_by_node(export(decompose_without_heads(graph), example)),
                    dynamo=True,
                    input_names=names_in,
                    output_names=names_out,
                    opset_version=opset,
                    verbose=False,
                )
        except torch.onnx.OnnxExporterError as error:
            raise Unsupported(f"The graph cannot be written as ONNX: {_cause(error)}") from error
        assert program is not None
        if has_dynamic_batch(graph):
            _name_batch(program)
        _drop_remarks(program)
        program.save(str(path), external_data=size_bytes > _PROTOBUF_LIMIT_BYTES)


def _drop_remarks(program: torch.onnx.ONNXProgram) -> None:
    """Drop what the exporter remarks of every node: paths of this machine, and how the graph came to be.

    None of it is needed to run, and the same graph gives the same bytes without it, however it was captured.
    """
    functions: list[Any] = [program.model.graph, *program.model.functions.values()]
    for function in functions:
        for node in function.all_nodes():
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()


def _name_batch(program: torch.onnx.ONNXProgram) -> None:
    """Call every symbolic first dimension `batch`, instead of the exporter's serial numbers."""
    for value in [*program.model.graph.inputs, *program.model.graph.outputs]:
        if value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int):
            value.shape[0] = "batch"


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
