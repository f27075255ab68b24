"""Google Coral's Edge TPU: the network as a fully int8 file, checked against what Google documents."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hasten.recipe import Program, check_options, option

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task

_COMPILER = "edgetpu_compiler"


@dataclass(frozen=True)
class EdgeTpu:
    """A file that LiteRT's converter and quantizer write, its operators checked against the constraints that
    `report.json` lists under `checked`, and compiled if `edgetpu_compiler` is on PATH. The program's numbers are
    LiteRT's on this CPU. Neither Google's compiler nor the device was run when this was written."""

    evidence: ClassVar[str] = "estimated"
    stack: ClassVar[str] = "litert"
    # By Google's compiler; without it on PATH the target states nothing.
    judges: ClassVar[dict[str, dict[str, Any]]] = {"sram_bytes": {}, "npu_share": {}}

    precision: Literal["int8"] = option("int8", "weights and activations by LiteRT's own quantizer", choices=("int8",))
    host: bool = option(False, "allow operators that stay on the host's processor, with everything after them")
    samples: int = option(128, "calibration samples to look at", low=1)

    def __post_init__(self) -> None:
        check_options(self)

    def missing(self) -> str:
        """Empty if LiteRT's environment is installed; Google's compiler is run where it is, and not asked for."""
        from hasten import environments

        return environments.missing("litert")

    def compile(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        """Write `model.tflite`, `report.json`, and where Google's compiler is on PATH `model_edgetpu.tflite`.

        Raises:
            Unsupported: The graph is quantized already or has a fixed batch above 1, LiteRT cannot convert it, Google's
                compiler refuses it, or without `host` an operator breaks a constraint that is checked.
        """
        from hasten import environments, judged
        from hasten.constraints import edgetpu
        from hasten.errors import Unsupported
        from hasten.targets._handover import write_tflite

        write_tflite(graph, task, folder, 1, int8=True, samples=self.samples, linear_per_channel=False)
        operators = environments.call("litert", "operators", folder=folder.absolute())
        broken = edgetpu.broken(operators)
        if broken and not self.host:
            raise Unsupported(
                f"Every operator must run on the Edge TPU, but {broken[0]}. {len(broken)} such in all; "
                "`host=True` leaves them to the host's processor."
            )
        report: dict[str, Any] = (
            _compiled(folder) if shutil.which(_COMPILER) else {"compiler": "not compiled by Google's compiler"}
        )
        stated = {"evidence": self.evidence, **report, "operators": [operator["name"] for operator in operators]}
        stated |= {"checked": edgetpu.checks(), "not_checked": edgetpu.unchecked(), "broken": broken}
        (folder / "report.json").write_text(json.dumps(stated, indent=2))
        judged.write(folder, {name: report[name] for name in report if name in judged.QUANTITIES})

    def load(self, folder: Path) -> Program:
        """The int8 file in LiteRT on this CPU: for its numbers, not for its speed."""
        from hasten import environments

        return environments.load("litert", folder, threads=1)


def _compiled(folder: Path) -> dict[str, Any]:
    """Run Google's compiler; what it states: share of operators, bytes cached and streamed."""
    import subprocess

    from hasten.errors import Unsupported

    command = [_COMPILER, "--show_operations", "--out_dir", ".", "model.tflite"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode or not (folder / "model_edgetpu.tflite").exists():
        reason = (done.stderr.strip() or done.stdout.strip())[-300:]
        raise Unsupported(f"Google's compiler must be able to compile the file, but: {reason}")
    return read_log(done.stdout)


def read_log(text: str) -> dict[str, Any]:
    """What `edgetpu_compiler --show_operations` prints, as judged quantities and the name of the `compiler`.

    Read as users of versions 15 and 16 have published it: lines of memory, and a table of operators with their count
    and status. The compiler itself was not at hand when this was written.
    """
    import re

    found: dict[str, Any] = {}
    if version := re.search(r"Edge TPU Compiler version (\S+)", text):
        found["compiler"] = f"{_COMPILER} {version[1]}"
    factors = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    for name, words in (("sram_bytes", "On-chip memory used for caching"), ("streamed_bytes", "Off-chip memory used")):
        if size := re.search(rf"{words}[^:]*: ([\d.]+)(B|KiB|MiB|GiB)", text):
            found[name] = float(size[1]) * factors[size[2]]
    rows = re.findall(r"^[A-Z][A-Z0-9_]* +(\d+) +(\S.*)$", text, re.MULTILINE)
    if count := sum(int(number) for number, _ in rows):
        found["npu_share"] = sum(int(number) for number, status in rows if status.startswith("Mapped")) / count
    return found
