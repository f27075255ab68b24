"""TPU ahead of time: Google's own compiler makes the executable and states its memory, on a machine without a TPU."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hasten.recipe import Program, check_options, option

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task


@dataclass(frozen=True)
class Tpu:
    """libtpu's compiler, in an environment of its own; memory and work are its estimates, nothing is timed."""

    evidence: ClassVar[str] = "estimated"
    stack: ClassVar[str] = "tpu"
    judges: ClassVar[dict[str, dict[str, Any]]] = {"hbm_bytes": {}}
    placements: ClassVar[tuple[str, ...]] = ("fuse_activations",)

    chip: Literal["v4", "v5e", "v5p", "v6e"] = option("v5e", "TPU generation", choices=("v4", "v5e", "v5p", "v6e"))
    chips: int = option(1, "chips that share a batch; every one holds all weights", choices=(1, 2, 4))
    batch: int = option(0, "samples per call over all chips; 0: as many as the example has", low=0)
    precision: Literal["bf16", "fp32"] = option(
        "bf16",
        "products of whatever is not quantized: bf16 operands with fp32 sums, or fp32 by several passes",
        choices=("bf16", "fp32"),
        grid=("bf16", "fp32"),
    )

    def __post_init__(self) -> None:
        check_options(self)

    def missing(self) -> str:
        """Empty if the environment with libtpu is installed."""
        from hasten import environments

        return environments.missing("tpu")

    def compile(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        """Write `plan.json`, `constants.npz`, the TPU's `executable.bin`, and the compiler's statement `report.json`.

        Raises:
            Unsupported: The program does not fit into the chip's memory, or has an operator without a lowering.
        """
        from hasten import environments
        from hasten.errors import Unsupported
        from hasten.graph import interpret
        from hasten.graph.plan import plan

        made = plan(graph, task.example)
        interpret.check(made)
        batch = made.fixed_batch or self.batch or len(task.example[0])
        if batch % self.chips:
            raise Unsupported(f"`batch` must divide over the chips, but {batch} samples do not over {self.chips}.")
        made.save(folder)
        environments.call(
            "tpu",
            "compile",
            folder=folder.absolute(),
            chip=self.chip,
            batch=batch,
            chips=self.chips,
            precision=self.precision,
        )

    def load(self, folder: Path) -> Program:
        """The same program on the CPU by XLA, in the environment's process: for its numbers, not for its speed."""
        from hasten import environments

        return environments.load("tpu", folder, precision=self.precision)
