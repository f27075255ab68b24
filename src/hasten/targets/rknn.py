"""Rockchip's NPUs: `model.rknn` by the vendor's own compiler, which states cycles and memory; no board was run."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hasten.recipe import Program, check_options, option

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task

_PLATFORMS = (
    "rk3588",
    "rk3576",
    "rk3568",
    "rk3566",
    "rk3562",
    "rk2118",
    "rv1126b",
    "rv1106b",
    "rv1106",
    "rv1103b",
    "rv1103",
)
# The newest that rknn-toolkit2 2.5 reads.
_OPSET = 19


@dataclass(frozen=True)
class Rknn:
    """rknn-toolkit2's compiler, quantizer and simulator, in an environment of their own; its compiler is closed. The
    program's numbers are the simulator's, which the vendor does not promise to equal a board's. No board was run."""

    evidence: ClassVar[str] = "estimated"
    stack: ClassVar[str] = "rknn"
    judges: ClassVar[dict[str, dict[str, Any]]] = {
        "cycles": {},
        "weight_bytes": {},
        "activation_bytes": {},
        "npu_share": {},
    }

    platform: str = option("rk3588", "chip, as rknn-toolkit2 names it", choices=_PLATFORMS)
    precision: Literal["int8", "fp16"] = option(
        "int8",
        "int8: weights and activations by rknn-toolkit2's own quantizer",
        choices=("int8", "fp16"),
        grid=("int8", "fp16"),
    )
    algorithm: Literal["normal", "mmse", "kl_divergence"] = option(
        "normal",
        "how ranges are chosen for int8; mmse searches for long",
        choices=("normal", "mmse", "kl_divergence"),
    )
    samples: int = option(32, "calibration samples; they stay in the folder, because the simulator needs them", low=1)

    def __post_init__(self) -> None:
        check_options(self)

    def missing(self) -> str:
        """Empty if the environment with rknn-toolkit2 is installed."""
        from hasten import environments

        return environments.missing("rknn")

    def compile(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        """Write `model.onnx`, `calibration/`, `build.json`, `build.py`, which builds the same without hasten, and by
        the vendor's compiler `model.rknn`, `report.json` and `judged.json`.

        Raises:
            Unsupported: The graph is quantized already, or ONNX or the vendor's compiler refuses an operator.
        """
        import tempfile

        from hasten import environments, judged
        from hasten.targets._handover import check_float, write_calibration, write_static_onnx

        check_float(graph, "rknn-toolkit2")
        example = write_static_onnx(graph, task, folder / "model.onnx", 1, _OPSET)
        settings = asdict(self) | {"batch": len(example[0]), "inputs": len(example)}
        (folder / "build.json").write_text(json.dumps(settings, indent=2))
        with tempfile.TemporaryDirectory() as name:
            if self.precision == "int8":
                write_calibration(task, Path(name), len(example[0]), self.samples)
            report = environments.call("rknn", "compile", folder=folder.absolute(), calibration=name)
        stated = {"evidence": self.evidence, "not_run": "a board; the program runs in the simulator", **report}
        (folder / "report.json").write_text(json.dumps(stated, indent=2))
        judged.write(folder, {name: report[name] for name in report if name in judged.QUANTITIES})

    def load(self, folder: Path) -> Program:
        """rknn-toolkit2's simulator, built again from the folder: for its numbers, not for its speed."""
        from hasten import environments

        return environments.load("rknn", folder)
