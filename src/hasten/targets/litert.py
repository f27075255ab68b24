"""LiteRT (TensorFlow Lite) with XNNPACK: the runtime of phones and boards, run on this CPU, in float or fully int8."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from hasten.recipe import Program, check_options, option

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task


@dataclass(frozen=True)
class LiteRt:
    """LiteRT's interpreter; the converter needs a second PyTorch and lives in an environment of its own."""

    evidence: ClassVar[str] = "timed"
    stack: ClassVar[str] = "litert"
    package: ClassVar[str] = "ai_edge_litert"

    precision: Literal["fp32", "int8"] = option(
        "fp32",
        "int8: weights and activations by LiteRT's own quantizer, which leaves no float island",
        choices=("fp32", "int8"),
        grid=("fp32", "int8"),
    )
    threads: int = option(
        0, "threads inside one call; 0: every core this process may use", low=0, high=1024, at_load=True, timed=(0, 1)
    )
    batch: int = option(1, "samples that the file takes at once; more are run in pieces", low=1)
    samples: int = option(128, "calibration samples to look at for int8", low=1)

    def __post_init__(self) -> None:
        check_options(self)

    def missing(self) -> str:
        """Empty if the converter's environment is installed."""
        from hasten import environments

        return environments.missing("litert")

    def compile(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        """Write `model.tflite`.

        Raises:
            Unsupported: The graph is quantized already, or holds an operator that LiteRT cannot convert.
        """
        from hasten.targets._handover import write_tflite

        write_tflite(graph, task, folder, self.batch, int8=self.precision == "int8", samples=self.samples)

    def load(self, folder: Path) -> Program:
        """The interpreter over `model.tflite`; in this process where LiteRT's runtime is installed."""
        from hasten import environments

        if module := environments.here("litert", "ai_edge_litert"):
            program: Program = module.load(folder, threads=self.threads)
            return program
        return environments.load("litert", folder, threads=self.threads)
