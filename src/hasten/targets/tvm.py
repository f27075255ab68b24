"""TVM: the captured graph through Relax to machine code for this CPU, its loops tuned for a limited time."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from hasten.recipe import Program, check_options, option

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task


@dataclass(frozen=True)
class Tvm:
    """TVM's compiler and runtime, in an environment of their own. MetaSchedule times variants of every loop here
    until `minutes` are over; untuned code is many times slower than eager PyTorch."""

    evidence: ClassVar[str] = "timed"
    stack: ClassVar[str] = "tvm"
    package: ClassVar[str] = "tvm"
    # Loading runs machine code.
    native_code: ClassVar[bool] = True
    # Minutes for one candidate, and no integers: a search with a deadline has better to do.
    only_by_name: ClassVar[bool] = True

    minutes: float = option(2.0, "time for tuning; 0: none", low=0.0)
    precision: Literal["fp32"] = option("fp32", "arithmetic", choices=("fp32",))
    threads: int = option(0, "threads that the code is tuned for and run with; 0: every core it may use", low=0)
    batch: int = option(1, "samples that the code takes at once; more are run in pieces", low=1)

    def __post_init__(self) -> None:
        check_options(self)

    def missing(self) -> str:
        """Empty if TVM's environment is installed."""
        from hasten import environments

        return environments.missing("tvm")

    def compile(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        """Write `model.so` and `report.json` (the batch size, kernels, how many are tuned, and for how long).

        Raises:
            Unsupported: The graph is quantized, or has an operator that TVM cannot compile.
        """
        from hasten import environments
        from hasten.graph.duplicate import duplicate
        from hasten.graph.fold_batch_norm import fold_batch_norm
        from hasten.targets._handover import check_float, write_program

        check_float(graph, "TVM", "there is no integer form of it here.")
        # TVM would compute a batch norm behind every sum.
        folded = duplicate(graph)
        fold_batch_norm(folded)
        example = write_program(folded, task, folder, self.batch)
        how = {"minutes": self.minutes, "threads": self.threads}
        report = environments.call("tvm", "compile", folder=folder.absolute(), **how)
        for path in (folder / "model.pt2", *folder.glob("example_*.npy")):
            path.unlink()
        (folder / "report.json").write_text(json.dumps({"batch": len(example[0]), **report}, indent=2))

    def load(self, folder: Path) -> Program:
        """The code of `model.so` in TVM's runtime; in this process where it is installed."""
        from hasten import environments

        batch = json.loads((folder / "report.json").read_text())["batch"]
        if module := environments.here("tvm", "tvm"):
            program: Program = module.load(folder, threads=self.threads, batch=batch)
            return program
        return environments.load("tvm", folder, threads=self.threads, batch=batch)
