"""ExecuTorch: an exported program with its layers in XNNPACK, run by ExecuTorch's runtime."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hasten.errors import Unsupported
from hasten.machine import usable_cores
from hasten.pieces import in_pieces


def compile(folder: Path) -> dict[str, Any]:
    """Turn `model.pt2` in `folder` into `model.pte`.

    Returns:
        `delegated`: subgraphs that XNNPACK runs; `left`: operators outside of them, and how often each occurs.

    Raises:
        Unsupported: An operator has neither an XNNPACK form nor a portable kernel.
    """
    import torch
    import torchao.quantization.pt2e  # noqa: F401  (registers the operators of quantized graphs)
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.load(folder / "model.pt2")
    try:
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        code = edge.to_executorch().buffer
    except Exception as error:
        raise Unsupported(f"ExecuTorch must be able to lower every operator, but: {_reason(error)}") from error
    (folder / "model.pte").write_bytes(code)
    called = [str(node.target) for node in edge.exported_program().graph.nodes if node.op == "call_function"]
    left = [name.partition(">:")[0].rpartition(" ")[2] for name in called if name.startswith("<EdgeOpOverload")]
    return {
        "delegated": sum("call_delegate" in name for name in called),
        "left": {name: left.count(name) for name in sorted(set(left))},
    }


def load(folder: Path, threads: int, batch: int) -> Callable[..., tuple[np.ndarray, ...]]:
    """The program of `model.pte`; any number of rows, in pieces of `batch`.

    Args:
        folder: Holds `model.pte`.
        threads: Threads inside one call; 0: every core this process may use.
        batch: Samples that the file takes at once.
    """
    import torch
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(threads or usable_cores())
    program = Runtime.get().load_program(folder / "model.pte")
    method = program.load_method("forward")

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = method.execute([torch.from_numpy(np.ascontiguousarray(x)) for x in arrays])
        # The next call writes to the same memory.
        return [np.array(y) for y in found]

    return in_pieces(run, batch)


def _reason(error: BaseException) -> str:
    """The line that names the operator, else the first one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "aten" in line or "variants" in line), lines[0])[:300]
