"""Arm Ethos-U: the network as a fully int8 file through Vela, Arm's compiler; cycles and memory are its estimates."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hasten.recipe import Program, check_options, option

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task

_ACCELERATORS = (
    "ethos-u55-32",
    "ethos-u55-64",
    "ethos-u55-128",
    "ethos-u55-256",
    "ethos-u65-256",
    "ethos-u65-512",
    "ethos-u85-128",
    "ethos-u85-256",
    "ethos-u85-512",
    "ethos-u85-1024",
    "ethos-u85-2048",
)


@dataclass(frozen=True)
class EthosU:
    """Vela over a file that LiteRT's converter and quantizer write; the program's numbers are LiteRT's on this CPU,
    which rounds a few values differently than the accelerator. The device itself was not run."""

    evidence: ClassVar[str] = "estimated"
    stack: ClassVar[str] = "ethos_u"
    judges: ClassVar[dict[str, dict[str, Any]]] = {
        "cycles": {},
        "sram_bytes": {},
        "weight_bytes": {},
        "latency_us": {},
        "npu_share": {},
    }

    accelerator: str = option("ethos-u55-128", "device and its multipliers", choices=_ACCELERATORS)
    precision: Literal["int8"] = option("int8", "weights and activations by LiteRT's own quantizer", choices=("int8",))
    batch: int = option(1, "samples that the file takes at once", low=1)
    samples: int = option(128, "calibration samples to look at", low=1)

    def __post_init__(self) -> None:
        check_options(self)

    def missing(self) -> str:
        """Empty if the environments of LiteRT and Vela are installed."""
        from hasten import environments

        return environments.missing("litert") or environments.missing("ethos_u")

    def compile(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        """Write `model.tflite`, `model_vela.tflite` for the device, `report.json` and `judged.json`.

        Raises:
            Unsupported: The graph is quantized already, or LiteRT or Vela cannot convert it.
        """
        from hasten import environments, judged
        from hasten.targets._handover import write_tflite

        write_tflite(graph, task, folder, self.batch, int8=True, samples=self.samples)
        report = environments.call("ethos_u", "compile", folder=folder.absolute(), accelerator=self.accelerator)
        (folder / "report.json").write_text(
            json.dumps({"evidence": "estimated", "accelerator": self.accelerator, **report}, indent=2)
        )
        judged.write(folder, {name: report[name] for name in report if name in judged.QUANTITIES})

    def load(self, folder: Path) -> Program:
        """The int8 file in LiteRT on this CPU: for its numbers, not for its speed."""
        from hasten import environments

        return environments.load("litert", folder, threads=1)
