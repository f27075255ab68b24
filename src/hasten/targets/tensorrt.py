"""TensorRT-RTX: an engine for NVIDIA GPUs of a named compute capability, built without a GPU, run with one."""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from hasten.errors import InvalidInput, Unsupported
from hasten.recipe import Program, check_options, option

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task

_BINDINGS = "tensorrt_rtx_bindings"
_FP8_CAPABILITIES = ("8.9", "12.0")
# The first whose QuantizeLinear knows fp8.
_FP8_OPSET = 19


@dataclass(frozen=True)
class TensorRt:
    """TensorRT-RTX's builder in an environment of its own. A graph of `Quantize(placement="signed")` multiplies int8,
    one of `Quantize(weights="fp8", activations="fp8")` fp8. Where that environment is installed, the tests build
    engines; none was run on a GPU yet."""

    evidence: ClassVar[str] = "timed"
    # An engine is machine code.
    native_code: ClassVar[bool] = True
    stack: ClassVar[str] = "tensorrt"
    placements: ClassVar[tuple[str, ...]] = ("signed",)
    fp8_products: ClassVar[bool] = True

    precision: Literal["fp32", "tf32"] = option(
        "fp32",
        "arithmetic of whatever is not quantized; tf32: products of 10-bit mantissas on Tensor Cores",
        choices=("fp32", "tf32"),
        grid=("fp32", "tf32"),
    )
    capability: str = option("8.9", "compute capability of the GPU", choices=("7.5", "8.0", "8.6", "8.9", "12.0"))
    largest: int = option(0, "largest batch that the engine takes; 0: that of the example", low=0)

    def __post_init__(self) -> None:
        check_options(self)
        if self.precision == "tf32" and self.capability == "7.5":
            raise InvalidInput("`precision` 'tf32' must come with a capability of 8.0 or more, but got '7.5'.")

    def missing(self) -> str:
        """Empty if the builder is installed, and a GPU and the runtime beside PyTorch are there to run what it builds.

        `compile` alone needs the environment only.
        """
        from hasten import environments
        from hasten.machine import has_nvidia_gpu

        if need := environments.missing("tensorrt"):
            return need
        if not has_nvidia_gpu():
            return "an NVIDIA GPU and its driver to run the engine: there is no CUDA GPU here"
        if not importlib.util.find_spec(_BINDINGS):
            return "pip install tensorrt-rtx-cu12-libs tensorrt-rtx-cu12-bindings"
        return "" if importlib.util.find_spec("torch") else "pip install torch"

    def compile(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        """Write `model.engine` and `report.json` (its bytes, layers, inputs and outputs).

        Raises:
            Unsupported: The graph has an operator that TensorRT cannot build, or activations with a zero point, or
                layers in fp8, which `capability` does not multiply.
        """
        import tempfile

        import torch

        from hasten import environments
        from hasten.graph.onnx import write_onnx
        from hasten.graph.signed import signed_integers
        from hasten.quantization.fp8 import fp8_as_operators

        signed = fp8_as_operators(signed_integers(graph))
        _check_zero_points(signed)
        has_fp8 = any(node.args[-1] == torch.float8_e4m3fn for node in signed.graph.nodes if node.args)
        if has_fp8 and self.capability not in _FP8_CAPABILITIES:
            raise Unsupported(
                f"fp8 must have a compute capability of {' or '.join(_FP8_CAPABILITIES)}, but got {self.capability}."
            )
        usual = len(task.example[0])
        largest = max(usual, self.largest)
        with tempfile.TemporaryDirectory() as name:
            scratch = Path(name)
            write_onnx(signed, task.example, scratch / "model.onnx", _FP8_OPSET if has_fp8 else None)
            report = environments.call(
                "tensorrt",
                "compile",
                folder=scratch,
                capability=self.capability,
                tf32=self.precision == "tf32",
                sizes=[1, usual, largest],
            )
            (folder / "model.engine").write_bytes((scratch / "model.engine").read_bytes())
        (folder / "report.json").write_text(
            json.dumps({"capability": self.capability, "largest": largest, **report}, indent=2)
        )

    def load(self, folder: Path) -> Program:
        """The engine on the current GPU, its memory held by PyTorch."""
        import tensorrt_rtx_bindings as trt
        import torch

        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine((folder / "model.engine").read_bytes())
        if engine is None:
            raise Unsupported(f"This GPU must have compute capability {self.capability}, but the engine does not load.")
        context = engine.create_execution_context()
        report = json.loads((folder / "report.json").read_text())
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

        def program(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
            # The engine has room for so many rows at a time.
            starts = range(0, len(inputs[0]), report["largest"])
            parts = [some(*(x[start : start + report["largest"]] for x in inputs)) for start in starts]
            return parts[0] if len(parts) == 1 else tuple(map(np.concatenate, zip(*parts, strict=True)))

        def some(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
            with torch.cuda.stream(stream):
                held = [torch.from_numpy(np.ascontiguousarray(x)).cuda() for x in inputs]
                for name, x in zip(report["inputs"], held, strict=True):
                    if not context.set_input_shape(name, tuple(x.shape)):
                        raise Unsupported(f"The engine must take inputs of shape {tuple(x.shape)}, but refuses them.")
                    context.set_tensor_address(name, x.data_ptr())
                found = []
                for name in report["outputs"]:
                    dtype = torch.from_numpy(np.empty(0, trt.nptype(engine.get_tensor_dtype(name)))).dtype
                    found.append(torch.empty(tuple(context.get_tensor_shape(name)), dtype=dtype, device="cuda"))
                    context.set_tensor_address(name, found[-1].data_ptr())
                if not context.execute_async_v3(stream.cuda_stream):
                    raise Unsupported("The engine must run on its inputs, but TensorRT reports a failure.")
            stream.synchronize()
            return tuple(y.cpu().numpy() for y in found)

        # The engine lives as long as its runtime.
        program.__dict__["runtime"] = runtime
        return program


def _check_zero_points(graph: "GraphModule") -> None:
    for node in graph.graph.nodes:
        if "quantize_per_tensor" in str(node.target) and node.args[2] != 0:
            raise Unsupported(
                f"TensorRT must get activations with zero point 0, but {node.name} has {node.args[2]}. "
                "Use Quantize(placement='signed')."
            )
