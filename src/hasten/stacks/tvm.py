"""TVM: an exported program through Relax to machine code for this CPU, its loops tuned by MetaSchedule."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hasten.errors import Unsupported
from hasten.pieces import in_pieces


def compile(folder: Path, minutes: float, threads: int) -> dict[str, Any]:
    """Turn `model.pt2` in `folder` into `model.so`.

    Args:
        folder: See above.
        minutes: Time for tuning; a candidate that is under way is finished. 0: no tuning.
        threads: That the code is tuned for; 0: every core this process may use.

    Returns:
        `kernels` of the network, how many of them are `tuned`, `candidates` that were measured, `tuning_s`.

    Raises:
        Unsupported: TVM cannot read or compile the program.
    """
    _set_threads(threads)
    import torch
    import tvm
    from tvm import relax
    from tvm.relax.frontend.torch import from_exported_program
    from tvm.s_tir import meta_schedule

    from hasten.stacks import _tvm_tuning

    processor = tvm.target.codegen.llvm_get_system_cpu()
    target = tvm.target.Target({"kind": "llvm", "mcpu": processor, "num-cores": _cores(threads)})
    try:
        module = from_exported_program(torch.export.load(folder / "model.pt2"))
        with target:
            module = tvm.transform.Sequential(_kernels(relax.transform))(module)
        tasks = meta_schedule.relax_integration.extract_tasks(module, target, None)
        database, report = _tvm_tuning.tune(tasks, minutes * 60)
        with target, database, tvm.transform.PassContext(opt_level=3):
            module = tvm.transform.Sequential(_tuned(relax.transform))(module)
            executable = relax.build(module, target=target)
    except Exception as error:
        raise Unsupported(f"TVM must be able to compile every operator, but: {_reason(error)}") from error
    executable.export_library(str(folder / "model.so"))
    return {"kernels": len(tasks), **report, "processor": processor, "tool": f"tvm {tvm.__version__}"}


def load(folder: Path, threads: int, batch: int) -> Callable[..., tuple[np.ndarray, ...]]:
    """The program of `model.so`; any number of rows, in pieces of `batch`.

    Args:
        folder: Holds `model.so`.
        threads: Threads inside one call; 0: every core this process may use. Read once in a process.
        batch: Samples that the code takes at once.
    """
    _set_threads(threads)
    import tvm
    from tvm import relax

    machine = relax.VirtualMachine(tvm.runtime.load_module(str(folder / "model.so")), tvm.cpu())
    main = machine["main"]

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        found: Any = main(*(tvm.runtime.tensor(np.ascontiguousarray(x)) for x in arrays))
        return [y.numpy() for y in (found if isinstance(found, (list, tuple, tvm.ir.Array)) else (found,))]

    return in_pieces(run, batch)


def _kernels(transform: Any) -> list[Any]:
    """From operators to fused loops, whose constants the tuner may lay out anew."""
    return [
        transform.DecomposeOpsForInference(),
        transform.CanonicalizeBindings(),
        transform.LegalizeOps(),
        transform.AnnotateTIROpPattern(),
        transform.FoldConstant(),
        transform.FuseOps(),
        transform.FuseTIR(),
        transform.AttachAttrLayoutFreeBuffers(),
    ]


def _tuned(transform: Any) -> list[Any]:
    """Tuned loops in place of plain ones, and constants laid out as these want them."""
    return [
        transform.MetaScheduleApplyDatabase(enable_warning=False),
        transform.SplitLayoutRewritePreproc(),
        transform.FoldConstant(),
    ]


def _cores(threads: int) -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return threads or usable


def _set_threads(threads: int) -> None:
    """TVM reads this once, when it first runs something in parallel."""
    os.environ["TVM_NUM_THREADS"] = str(_cores(threads))


def _reason(error: BaseException) -> str:
    """The line that names the operator, else the last one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "aten" in line or "nsupported" in line), lines[-1])[:300]
