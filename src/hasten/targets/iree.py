"""IREE: the captured graph through StableHLO to machine code for this CPU, run by a small runtime of its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from hasten.recipe import Program, check_options, option

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task


@dataclass(frozen=True)
class Iree:
    """IREE's compiler and runtime, in an environment of their own."""

    evidence: ClassVar[str] = "timed"
    # `model.vmfb` holds a library that the runtime links and runs.
    native_code: ClassVar[bool] = True
    stack: ClassVar[str] = "iree"
    package: ClassVar[str] = "iree"
    placements: ClassVar[tuple[str, ...]] = ("fuse_activations",)

    precision: Literal["fp32"] = option("fp32", "arithmetic of whatever is not quantized", choices=("fp32",))
    integer: bool = option(True, "int8 products as s8 x s8 -> s32 instead of float products of dequantized values")
    threads: int = option(
        0, "threads inside one call; 0: every core this process may use", low=0, high=1024, at_load=True, timed=(0, 1)
    )
    batch: int = option(1, "samples that the program takes at once; more are run in pieces", low=1)

    def __post_init__(self) -> None:
        check_options(self)

    def missing(self) -> str:
        """Empty if IREE's environment is installed."""
        from hasten import environments

        return environments.missing("iree")

    def compile(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        """Write `model.vmfb` and `inputs.json`.

        Raises:
            Unsupported: The graph has an operator without a lowering.
        """
        from hasten import environments
        from hasten.graph import interpret
        from hasten.graph.plan import plan

        made = plan(graph, task.example)
        interpret.check(made)
        made.save(folder)
        batch = made.fixed_batch or self.batch
        environments.call("iree", "compile", folder=folder.absolute(), batch=batch, integer=self.integer)

    def load(self, folder: Path) -> Program:
        """IREE's runtime over `model.vmfb`; in this process where it is installed."""
        from hasten import environments

        if module := environments.here("iree", "iree"):
            program: Program = module.load(folder, threads=self.threads)
            return program
        return environments.load("iree", folder, threads=self.threads)
