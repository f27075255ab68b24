"""A captured graph to an AOTInductor package for one device and batch size; the CPU takes the same way in tests."""

from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from hasten.gpu import lowering
from hasten.graph.capture import has_dynamic_batch
from hasten.graph.duplicate import duplicate, move
from hasten.graph.quiet import quiet
from hasten.task import Inputs

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def lowered(
    graph: GraphModule, example: Inputs, device: str, precision: str, fp8: bool, sparse: bool, batch: int
) -> torch.export.ExportedProgram:
    """The program that Inductor compiles: on `device`, at one batch size, its products as Tensor Cores take them.

    Args:
        graph: A captured graph on the CPU; left as it is.
        example: One batch of its inputs, on the CPU.
        device: "cuda" or "cpu".
        precision: A key of `DTYPES`.
        fp8: Whether linear layers multiply in fp8.
        sparse: Whether linear layers with 2:4 sparse weights become sparse products.
        batch: Samples per call; 0: as the example has. A graph of a fixed batch size keeps it.

    Raises:
        Unsupported: Nothing in the graph can be lowered as `fp8` or `sparse` say.
    """
    dtype = DTYPES[precision]
    moved = duplicate(graph)
    move(moved, torch.device(device))
    if sparse:
        lowering.lower_sparse(moved, dtype)
    if fp8:
        lowering.lower_fp8(moved)
    lowering.lower_fp8_layers(moved, dtype)
    lowering.lower_integers(moved, dtype)
    if dtype != torch.float32:
        lowering.round_in_float32(moved)
        lowering.meet_in(moved, dtype)
        move(moved, torch.device(device))
    inputs = tuple(x.to(device) for x in at_batch(example, batch if has_dynamic_batch(graph) else 0))
    with torch.no_grad(), quiet(categories=(Warning,)):
        program = torch.export.export(moved, inputs, strict=False)
        if dtype == torch.float32:
            return program
        # They pin the dtypes of float32, which autocast is about to change.
        for node in list(program.graph.nodes):
            if node.target is torch.ops.aten._assert_tensor_metadata.default:
                program.graph.erase_node(node)
        with torch.autocast(device, dtype):
            halved: torch.export.ExportedProgram = program.run_decompositions()
            return halved


def at_batch(example: Inputs, batch: int) -> Inputs:
    """The example repeated or cut to `batch` samples; 0: as it is."""
    if not batch:
        return example
    return tuple(torch.cat([x] * -(-batch // len(x)))[:batch].contiguous() for x in example)


def package(program: torch.export.ExportedProgram, path: Path, autotune: bool) -> None:
    """Compile `program` to machine code at `path`."""
    from torch._inductor import aoti_compile_and_package

    configs: dict[str, Any] = {"freezing": True}
    if autotune:
        # Every product is timed as a library call and as Triton kernels of several tile sizes with the epilogue fused.
        configs |= {"max_autotune": True, "coordinate_descent_tuning": True}
    with torch.no_grad(), quiet("torch._inductor", categories=(Warning,)):
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)
