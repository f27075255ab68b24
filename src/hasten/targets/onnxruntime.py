"""ONNX Runtime on the CPU: the captured graph as `model.onnx`, optimised for this machine when loaded."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from hasten.recipe import Program, check_options, option

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime's CPU provider."""

    # A loaded program may be called from several threads at once, and then runs in each of them.
    concurrent: ClassVar[bool] = True
    evidence: ClassVar[str] = "timed"
    # 8-bit products run on the CPU's own instructions, so `compile` checks that they cannot saturate.
    runs_on_cpu: ClassVar[bool] = True
    placements: ClassVar[tuple[str, ...]] = ("fuse_clamps",)

    threads: int = option(0, "threads inside one call; 0: every core this process may use", low=0)
    spinning: bool = option(True, "idle threads spin before they sleep: faster alone, harmful beside others")
    precision: Literal["fp32"] = option("fp32", "arithmetic of whatever is not quantized", choices=("fp32",))

    def __post_init__(self) -> None:
        check_options(self)

    def missing(self) -> str:
        """Empty if the `onnxruntime` package can be imported."""
        return "" if importlib.util.find_spec("onnxruntime") else "pip install onnxruntime"

    def compile(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        """Write `model.onnx`; products with integer weights alone become packed kernels."""
        from hasten.graph.onnx import write_onnx
        from hasten.quantization.packing import pack_products

        write_onnx(pack_products(graph), task.example, folder / "model.onnx")

    def load(self, folder: Path) -> Program:
        """A session over `model.onnx`; inputs are bound by position."""
        import onnxruntime as ort

        from hasten.machine import usable_cores

        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads or usable_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(self.spinning)))
        session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]

        def program(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
            return tuple(session.run(None, dict(zip(names, inputs, strict=True))))

        return program
