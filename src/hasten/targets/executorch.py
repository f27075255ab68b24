"""ExecuTorch with XNNPACK: PyTorch's runtime for phones and boards, run on this CPU, in float or int8."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from hasten.recipe import Program, check_options, option

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task


@dataclass(frozen=True)
class ExecuTorch:
    """ExecuTorch's compiler and runtime, in an environment of their own."""

    evidence: ClassVar[str] = "timed"
    stack: ClassVar[str] = "executorch"
    package: ClassVar[str] = "executorch"
    placements: ClassVar[tuple[str, ...]] = ("fuse_clamps",)

    precision: Literal["fp32"] = option("fp32", "arithmetic of whatever is not quantized", choices=("fp32",))
    threads: int = option(
        0, "threads inside one call; 0: every core this process may use", low=0, high=1024, at_load=True, timed=(0, 1)
    )
    batch: int = option(1, "samples that the file takes at once; more are run in pieces", low=1)

    def __post_init__(self) -> None:
        check_options(self)

    def missing(self) -> str:
        """Empty if ExecuTorch's environment is installed."""
        from hasten import environments

        return environments.missing("executorch")

    def compile(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        """Write `model.pte` and `report.json` (the batch size, what XNNPACK runs and what it leaves).

        Raises:
            Unsupported: The graph has an operator that ExecuTorch cannot lower.
        """
        from hasten import environments
        from hasten.graph.signed import signed_integers, unrounded_weights_to_float
        from hasten.targets._handover import write_program

        signed = signed_integers(graph)
        unrounded_weights_to_float(signed)
        example = write_program(signed, task, folder, self.batch)
        report = environments.call("executorch", "compile", folder=folder.absolute())
        for path in (folder / "model.pt2", *folder.glob("example_*.npy")):
            path.unlink()
        (folder / "report.json").write_text(json.dumps({"batch": len(example[0]), **report}, indent=2))

    def load(self, folder: Path) -> Program:
        """ExecuTorch's runtime over `model.pte`; in this process where it is installed."""
        from hasten import environments

        batch = json.loads((folder / "report.json").read_text())["batch"]
        if module := environments.here("executorch", "executorch"):
            program: Program = module.load(folder, threads=self.threads, batch=batch)
            return program
        return environments.load("executorch", folder, threads=self.threads, batch=batch)
