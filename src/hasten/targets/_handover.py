"""What targets write for a compiler in another process: the program at one batch size, an example, calibration data."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Inputs, Task


def write_program(graph: "GraphModule", task: "Task", folder: Path, batch: int) -> "Inputs":
    """Write `model.pt2`, exported at a fixed batch size, and `example_0.npy`, ...

    Args:
        graph: A captured graph; one of a fixed batch size keeps it.
        task: Whose example is repeated or cut to `batch` samples.
        folder: Where to.
        batch: Samples per call.

    Returns:
        The example at that batch size.
    """
    import torch

    from hasten.graph.quiet import quiet

    example = _example(graph, task, batch)
    with torch.no_grad(), quiet(categories=(Warning,)):
        torch.export.save(torch.export.export(graph, example), folder / "model.pt2")
    for index, x in enumerate(example):
        np.save(folder / f"example_{index}.npy", x.detach().numpy())
    return example


def write_static_onnx(graph: "GraphModule", task: "Task", path: Path, batch: int, opset: int) -> "Inputs":
    """Write an ONNX file whose every size is fixed, as compilers of accelerators want it.

    Args:
        graph: A captured graph; one of a fixed batch size keeps it.
        task: Whose example is repeated or cut to `batch` samples.
        path: The file.
        batch: Samples per call.
        opset: Version of ONNX's operators.

    Returns:
        The example at that batch size.

    Raises:
        Unsupported: The graph has an operator that ONNX cannot express.
    """
    import torch

    from hasten.graph.onnx import write_onnx
    from hasten.graph.quiet import quiet

    example = _example(graph, task, batch)
    with torch.no_grad(), quiet(categories=(Warning,)):
        fixed = torch.export.export(graph, example).module(check_guards=False)
    write_onnx(fixed, example, path, opset)
    return example


def _example(graph: "GraphModule", task: "Task", batch: int) -> "Inputs":
    """The task's example at `batch` samples, or at those that the graph is fixed to."""
    import torch

    from hasten.graph.capture import has_dynamic_batch

    size = batch if has_dynamic_batch(graph) else len(task.example[0])
    return tuple(torch.cat([x] * -(-size // len(x)))[:size] for x in task.example)


def write_calibration(task: "Task", folder: Path, batch: int, samples: int) -> None:
    """Write `calibration_0.npy`, ...: about `samples` samples as [n, batch, ...] for every input."""
    import torch

    from hasten.task import calibration_inputs

    rows = (row for inputs in calibration_inputs(task) for row in zip(*inputs, strict=True))
    chosen = list(itertools.islice(rows, -(-samples // batch) * batch))
    chosen = (chosen * batch)[: max(batch, len(chosen) // batch * batch)]
    for index in range(len(task.example)):
        values = torch.stack([row[index] for row in chosen]).detach().numpy()
        np.save(folder / f"calibration_{index}.npy", values.reshape(-1, batch, *values.shape[1:]))


def write_tflite(
    graph: "GraphModule",
    task: "Task",
    folder: Path,
    batch: int,
    *,
    int8: bool,
    samples: int = 0,
    linear_per_channel: bool = True,
) -> None:
    """Write `model.tflite` by LiteRT's converter, in float or fully int8 by LiteRT's own quantizer.

    Args:
        graph: A captured graph in float.
        task: For the example and calibration samples.
        folder: Where to.
        batch: Samples per call; a graph of a fixed batch size keeps its own.
        int8: Whether weights, activations, inputs and outputs become int8.
        samples: Calibration samples, for int8.
        linear_per_channel: Whether weights of int8 linear layers have a scale per channel.

    Raises:
        Unsupported: The graph is quantized already, or LiteRT cannot convert an operator.
    """
    import tempfile

    from hasten import environments

    check_float(graph, "LiteRT")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        example = write_program(graph, task, scratch, batch)
        if int8:
            write_calibration(task, scratch, len(example[0]), samples)
        how = {"int8": int8, "linear_per_channel": linear_per_channel}
        environments.call("litert", "compile", folder=scratch, inputs=len(example), **how)
        (folder / "model.tflite").write_bytes((scratch / "model.tflite").read_bytes())


def check_float(graph: "GraphModule", who: str, remedy: str = "{who}'s own quantizer makes the file int8.") -> None:
    """Refuse a quantized graph for a tool that quantizes itself, or not at all.

    Raises:
        Unsupported: The graph has quantize operators.
    """
    from hasten.errors import Unsupported

    if any("quantized_decomposed" in str(node.target) for node in graph.graph.nodes):
        raise Unsupported(
            f"{who} must get a graph in float, but this one has quantize operators, which it would run in float. "
            f"Leave out Quantize: {remedy.format(who=who)}"
        )
