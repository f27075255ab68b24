"""Huawei Ascend: a file that CANN's compiler takes, the exact `atc` command, and its result where `atc` is on PATH."""

import importlib.util
import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from hasten.errors import InvalidInput, Unsupported
from hasten.recipe import Program, check_options, option

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Inputs, Task

_COMPILER = "atc"
_PRECISIONS = ("force_fp16", "allow_fp32_to_fp16", "allow_mix_precision", "must_keep_origin_dtype", "force_fp32")


@dataclass(frozen=True)
class Ascend:
    """ONNX of fixed sizes, its operators checked against the constraints that `report.json` lists under `checked`. The
    program's numbers are ONNX Runtime's on this CPU, in fp32. Neither `atc` nor a processor was run when this was
    written."""

    evidence: ClassVar[str] = "estimated"

    soc_version: str = option("Ascend310P3", "processor as `npu-smi info` names it, with Ascend before it")
    precision_mode: str = option("force_fp16", "what `atc` does with fp32 operators", choices=_PRECISIONS)
    aipp: Literal["none", "rgb"] = option(
        "none",
        "rgb: the compiled file takes uint8 [batch, height, width, 3] and subtracts `mean`, divides by `std` itself",
        choices=("none", "rgb"),
    )
    mean: tuple[float, ...] = option((0.0, 0.0, 0.0), "of red, green, blue in 0 to 255, for aipp")
    std: tuple[float, ...] = option((1.0, 1.0, 1.0), "of red, green, blue in 0 to 255, for aipp")
    batch: int = option(1, "samples that the file takes at once", low=1)

    def __post_init__(self) -> None:
        check_options(self)
        if len(self.mean) != 3 or len(self.std) != 3 or not all(x > 0 for x in self.std):
            raise InvalidInput(
                f"`mean` and `std` must have three numbers, those of `std` above 0, but are {self.mean} and {self.std}."
            )

    def missing(self) -> str:
        """Empty if ONNX and ONNX Runtime are installed; `atc` is run where it is, and not asked for."""
        here = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
        return "" if here else "pip install onnx onnxruntime"

    def compile(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        """Write `model.onnx`, `atc.sh`, with aipp `aipp.cfg`, `report.json`, and where `atc` is on PATH `model.om`.

        Raises:
            Unsupported: The graph is quantized, breaks a constraint that is checked, or `atc` refuses it.
        """
        import onnx

        from hasten.constraints import ascend
        from hasten.targets._handover import write_static_onnx

        if any("quantized_decomposed" in str(node.target) for node in graph.graph.nodes):
            raise Unsupported("CANN's list of ONNX operators has no QuantizeLinear. Leave out Quantize.")
        path = folder / "model.onnx"
        example = write_static_onnx(graph, task, path, self.batch, 18)
        try:
            model = ascend.lowered(onnx.load(str(path)))
        except ValueError as error:
            raise Unsupported(f"CANN must get operator set {ascend.OPSET}, but: {error}.") from error
        onnx.save(model, str(path))
        if broken := ascend.broken(model):
            raise Unsupported(f"CANN must know every operator, but {broken[0]}. {len(broken)} such in all.")
        names = [value.name for value in model.graph.input]
        command = self._command(names, example, folder)
        (folder / "atc.sh").write_text(
            f"#!/bin/sh\n# Compiles model.onnx for {self.soc_version}.\n{shlex.join(command)}\n"
        )
        compiler = _compiled(command, folder) if shutil.which(_COMPILER) else f"{_COMPILER} not run"
        stated: dict[str, Any] = {"evidence": self.evidence, "compiler": compiler, "not_run": "a processor"}
        stated |= {"operators": sorted({node.op_type for node in model.graph.node}), "checked": ascend.checks()}
        stated |= {"not_checked": ascend.unchecked(), "doubts": ascend.doubts(model)}
        (folder / "report.json").write_text(json.dumps(stated, indent=2))

    def load(self, folder: Path) -> Program:
        """ONNX Runtime on this CPU: for its numbers, not for its speed; any number of rows, in pieces."""
        import onnxruntime

        from hasten.pieces import in_pieces

        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        inputs = session.get_inputs()

        def piece(arrays: Any) -> list[np.ndarray]:
            return list(session.run(None, {x.name: array for x, array in zip(inputs, arrays, strict=True)}))

        return in_pieces(piece, int(inputs[0].shape[0]))

    def _command(self, names: list[str], example: "Inputs", folder: Path) -> list[str]:
        shapes = ";".join(f"{n}:{','.join(map(str, x.shape))}" for n, x in zip(names, example, strict=True))
        command = [_COMPILER, "--model=model.onnx", "--framework=5", "--output=model", f"--input_shape={shapes}"]
        if example[0].ndim == 4:
            command.append("--input_format=NCHW")
        command += [f"--soc_version={self.soc_version}", f"--precision_mode={self.precision_mode}"]
        if self.aipp == "none":
            return command
        if example[0].ndim != 4 or example[0].shape[1] != 3:
            raise Unsupported(
                f"`aipp` must have a first input of [batch, 3, height, width], but it is {list(example[0].shape)}."
            )
        height, width = example[0].shape[2:]
        (folder / "aipp.cfg").write_text(self._aipp(height, width))
        return [*command, "--insert_op_conf=aipp.cfg"]

    def _aipp(self, height: int, width: int) -> str:
        channels = [f"  min_chn_{i}: {m:g}\n  var_reci_chn_{i}: {1 / s:.9g}" for i, (m, s) in enumerate(self._scale())]
        sizes = f"  src_image_size_w: {width}\n  src_image_size_h: {height}"
        lines = ["aipp_op {", "  aipp_mode: static", "  related_input_rank: 0", "  input_format: RGB888_U8", sizes]
        return "\n".join([*lines, *channels, "}\n"])

    def _scale(self) -> list[tuple[float, float]]:
        return list(zip(self.mean, self.std, strict=True))


def _compiled(command: list[str], folder: Path) -> str:
    """Run CANN's compiler; what compiled the file."""
    import subprocess

    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode or not (folder / "model.om").exists():
        reason = (done.stderr.strip() or done.stdout.strip())[-300:]
        raise Unsupported(f"CANN's compiler must be able to compile the file, but: {reason}")
    return f"{_COMPILER} as found on PATH ({shutil.which(_COMPILER)})"
