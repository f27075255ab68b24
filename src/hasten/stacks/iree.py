"""IREE: a plan through JAX and StableHLO to machine code for this CPU at one batch size, run by IREE's own runtime."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hasten.errors import Unsupported
from hasten.graph.plan import Plan
from hasten.machine import usable_cores
from hasten.pieces import in_pieces

_FLAGS = ("--iree-opt-level=O3", "--iree-llvmcpu-target-cpu=host")


def compile(folder: Path, batch: int, integer: bool, flags: Sequence[str] = _FLAGS) -> None:
    """Write `model.vmfb` and `inputs.json` beside the plan in `folder`, then remove the plan.

    Args:
        folder: Holds the plan.
        batch: Samples of one call.
        integer: Whether products of int8 tensors stay integer.
        flags: Of IREE's compiler.

    Raises:
        Unsupported: IREE cannot compile the program.
    """
    import iree.compiler as compiler
    import jax

    from hasten.stacks._jax import function_of

    plan = Plan.load(folder)
    with jax.enable_x64(True):
        shapes = [jax.ShapeDtypeStruct(tuple(s or batch for s in x.shape), np.dtype(x.dtype)) for x in plan.inputs]
        text = jax.jit(function_of(plan, integer)).lower(*shapes).as_text()
    try:
        code = compiler.compile_str(
            text, target_backends=["llvm-cpu"], input_type="stablehlo", extra_args=list(flags), strip_source_map=True
        )
    except compiler.CompilerToolError as error:
        raise Unsupported(f"IREE must be able to compile every operator, but: {_reason(str(error))}") from error
    (folder / "model.vmfb").write_bytes(code)
    (folder / "inputs.json").write_text(json.dumps([[list(x.shape), np.dtype(x.dtype).name] for x in shapes]))
    for name in ("plan.json", "constants.npz"):
        (folder / name).unlink()


def load(folder: Path, threads: int) -> Callable[..., tuple[np.ndarray, ...]]:
    """The program of `model.vmfb`; any batch size, in pieces.

    Args:
        folder: What `compile` wrote.
        threads: Threads inside one call; 0: every core this process may use.
    """
    import iree.runtime as runtime

    # Read once, when the process makes its first device.
    runtime.flags.parse_flags(f"--task_topology_group_count={threads or usable_cores()}")
    module = runtime.load_vm_flatbuffer_file(str(folder / "model.vmfb"), driver="local-task")
    size = int(json.loads((folder / "inputs.json").read_text())[0][0][0])

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        found: Any = module.main(*(np.ascontiguousarray(x) for x in arrays))
        return [np.asarray(y) for y in (found if isinstance(found, (list, tuple)) else (found,))]

    return in_pieces(run, size)


def _reason(message: str) -> str:
    """The first line that names an error."""
    lines = [line.strip() for line in message.splitlines() if "error:" in line]
    return (lines or [message])[0][:300]
