"""TorchInductor ahead of time: the captured graph compiled to machine code, loaded without tracing again."""

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from hasten.recipe import Program, check_options, option

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task


@dataclass(frozen=True)
class Inductor:
    """An AOTInductor package for this machine's instruction set."""

    evidence: ClassVar[str] = "timed"
    native_code: ClassVar[bool] = True

    threads: int = option(
        0, "threads inside one call; 0: every core this process may use", low=0, high=1024, at_load=True
    )
    precision: Literal["fp32", "bf16"] = option(
        "fp32", "arithmetic of matrix work", choices=("fp32", "bf16"), grid=("fp32", "bf16")
    )

    def __post_init__(self) -> None:
        check_options(self)

    def missing(self) -> str:
        """Empty if PyTorch and a C++ compiler are there, and the CPU has what `precision` needs."""
        if not importlib.util.find_spec("torch"):
            return "pip install torch"
        if not any(map(shutil.which, ("g++", "clang++"))):
            return "a C++ compiler: g++ or clang++"
        from hasten.machine import cpu_has_bf16

        return "a CPU with bf16 arithmetic" if self.precision == "bf16" and not cpu_has_bf16() else ""

    def compile(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        """Write `model.pt2`; weights are constants, so that they are packed for the matrix kernels."""
        import torch
        from torch._inductor import aoti_compile_and_package

        from hasten.graph.capture import export
        from hasten.graph.quiet import quiet

        program = export(graph, task.example)
        with torch.no_grad(), quiet("torch._inductor", categories=(Warning,)):
            if self.precision == "bf16":
                with torch.autocast("cpu", torch.bfloat16):
                    program = program.run_decompositions()
            # Freezing inlines the weights, which also frees the compiler to fold batch norm into convolutions.
            aoti_compile_and_package(
                program, package_path=str(folder / "model.pt2"), inductor_configs={"freezing": True}
            )

    def load(self, folder: Path) -> Program:
        """The compiled package."""
        import torch
        from torch._inductor import aoti_load_package

        from hasten.machine import usable_cores

        torch.set_num_threads(self.threads or usable_cores())
        package = aoti_load_package(str(folder / "model.pt2"))

        def program(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
            with torch.inference_mode():
                output = package(*(torch.from_numpy(x) for x in inputs))
            leaves = output if isinstance(output, (tuple, list)) else (output,)
            return tuple(y.float().numpy() if y.dtype == torch.bfloat16 else y.numpy() for y in leaves)

        return program
