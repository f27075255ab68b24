"""XLA: the captured graph through JAX and StableHLO, compiled for the CPU when loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from hasten.recipe import Program, check_options, option

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task


@dataclass(frozen=True)
class Xla:
    """XLA by way of JAX; in this process where JAX is installed, else in an environment of its own."""

    evidence: ClassVar[str] = "timed"
    stack: ClassVar[str] = "xla"
    package: ClassVar[str] = "jax"

    precision: Literal["fp32"] = option("fp32", "arithmetic of whatever is not quantized", choices=("fp32",))
    integer: bool = option(False, "int8 products as s8 x s8 -> s32 instead of float products of dequantized values")

    def __post_init__(self) -> None:
        check_options(self)

    def missing(self) -> str:
        """Empty if JAX can be imported here or its environment is installed."""
        from hasten import environments

        return "" if environments.here("xla", "jax") else environments.missing("xla")

    def compile(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        """Write `plan.json` and `constants.npz`, after checking that every operator can be lowered."""
        from hasten.graph import interpret
        from hasten.graph.plan import plan

        made = plan(graph, task.example)
        interpret.check(made)
        made.save(folder)

    def load(self, folder: Path) -> Program:
        """The plan as an XLA program, compiled at the first call of every batch size."""
        from hasten import environments

        if module := environments.here("xla", "jax"):
            program: Program = module.load(folder, integer=self.integer)
            return program
        return environments.load("xla", folder, integer=self.integer)
