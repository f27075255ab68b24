"""ONNX Runtime: the captured graph as `model.onnx`, optimised for this machine when loaded; on the CPU or CUDA."""

import importlib.util
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from hasten.errors import Unsupported
from hasten.recipe import Program, check_options, option

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task

_CUDA = "CUDAExecutionProvider"
# What ONNX Runtime would do to a graph of mixed precision. The first rounds weights that stand between integers, with
# one scale for all channels, though they were to stay in float. The second merges a linear layer with the activation
# behind it into a kernel that knows no integers, before the layer can become an integer one.
_UNDOES_ROUNDING = ["WeightBiasQuantization", "GemmActivationFusion"]


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime's CPU provider, or its CUDA provider where that is installed (not run on a GPU yet)."""

    # A loaded program may be called from several threads at once, and then runs in each of them.
    concurrent: ClassVar[bool] = True
    evidence: ClassVar[str] = "timed"
    # Linear layers may read activations that are rounded as they come.
    dynamic_activations: ClassVar[bool] = True
    # 8-bit products run on the CPU's own instructions, so `compile` checks that they cannot saturate.
    runs_on_cpu: ClassVar[bool] = True
    # (bits, group) of weights alone that its kernels multiply from memory as they are, as MatMulNBits.
    packed_weights: ClassVar[tuple[tuple[int, int | None], ...]] = ((8, None), (4, 32), (4, 128))
    placements: ClassVar[tuple[str, ...]] = ("fuse_clamps",)

    threads: int = option(
        0, "threads inside one call; 0: every core this process may use", low=0, high=1024, at_load=True, timed=(0, 1)
    )
    spinning: bool = option(
        True, "idle threads spin before they sleep: faster alone, harmful beside others", at_load=True
    )
    precision: Literal["fp32"] = option("fp32", "arithmetic of whatever is not quantized", choices=("fp32",))

    device: Literal["cpu", "cuda"] = option(
        "cpu",
        "what runs it; cuda: in fp32, whatever is quantized too",
        choices=("cpu", "cuda"),
        grid=("cpu", "cuda"),
        at_load=True,
    )

    def __post_init__(self) -> None:
        check_options(self)

    def missing(self) -> str:
        """Empty if the `onnxruntime` package can be imported and has the provider of `device`."""
        if not importlib.util.find_spec("onnxruntime"):
            return "pip install onnxruntime"
        if self.device == "cpu":
            return ""
        import onnxruntime as ort

        from hasten.machine import has_nvidia_gpu

        if _CUDA not in ort.get_available_providers():
            return "pip install onnxruntime-gpu in place of onnxruntime"
        return "" if has_nvidia_gpu() else "an NVIDIA GPU and its driver: there is no CUDA GPU here"

    def compile(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        """Write `model.onnx`; products with integer weights alone become packed kernels."""
        from hasten.graph.onnx import write_onnx
        from hasten.quantization.packing import pack_products

        write_onnx(pack_products(graph), task.example, folder / "model.onnx")

    def session_options(self) -> Any:
        """How a session of this target runs: threads and spinning; also for whoever profiles it."""
        import onnxruntime as ort

        from hasten.machine import usable_cores

        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads or usable_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(self.spinning)))
        return options

    def session(self, folder: Path, options: Any) -> Any:
        """A session over `model.onnx` whose layers compute in the precision that the file says."""
        import onnxruntime as ort

        providers: list[Any] = ["CPUExecutionProvider"]
        if self.device == "cuda":
            providers.insert(0, (_CUDA, {"use_tf32": "0"}))
        path = folder / "model.onnx"
        without = _UNDOES_ROUNDING if _has_integers(path) else []
        return ort.InferenceSession(str(path), options, providers=providers, disabled_optimizers=without)

    def load(self, folder: Path) -> Program:
        """A session over `model.onnx`; inputs are bound by position."""
        session = self.session(folder, self.session_options())
        # A provider whose libraries cannot be loaded is left out with a line in the log.
        if self.device == "cuda" and _CUDA not in session.get_providers():
            raise Unsupported(f"{_CUDA} must be able to load its libraries, but could not. Install CUDA and cuDNN.")
        names = [value.name for value in session.get_inputs()]

        def program(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
            return tuple(session.run(None, dict(zip(names, inputs, strict=True))))

        return program


def _has_integers(path: Path) -> bool:
    """Whether an ONNX file has an operator that reads rounded values."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as found:
        return found.find(b"DequantizeLinear") >= 0
