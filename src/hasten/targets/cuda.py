"""NVIDIA GPUs through TorchInductor ahead of time: Tensor Core products, replayed as one CUDA graph."""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from hasten.errors import InvalidInput, Unsupported
from hasten.recipe import Program, check_options, option

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task

# Compute capability whose Tensor Cores first multiply each type.
_CAPABILITY = {"bf16": (8, 0), "tf32": (8, 0), "fp16": (7, 0), "fp8": (8, 9), "sparse": (8, 0)}


@dataclass(frozen=True)
class Cuda:
    """An AOTInductor package for this machine's GPU. A graph of `Quantize` multiplies int8 on Tensor Cores: linear
    layers by cuBLAS or Inductor's templates, convolutions by a Triton kernel. One in fp8 multiplies fp8 in its linear
    layers. Not run on a GPU yet."""

    evidence: ClassVar[str] = "timed"
    native_code: ClassVar[bool] = True
    placements: ClassVar[tuple[str, ...]] = ("fuse_activations",)
    fp8_products: ClassVar[bool] = True

    precision: Literal["fp32", "tf32", "fp16", "bf16"] = option(
        "fp32",
        "arithmetic of whatever is not quantized; tf32: products of 10-bit mantissas on Tensor Cores",
        choices=("fp32", "tf32", "fp16", "bf16"),
        grid=("fp32", "tf32", "fp16", "bf16"),
    )
    fp8: bool = option(
        False, "linear layers in fp8 (e4m3) without calibration: a scale per row as it comes; needs bf16"
    )
    sparse: bool = option(False, "linear layers with 2:4 sparse weights as sparse products; needs fp16 or bf16")
    graphs: bool = option(True, "replay all launches as one CUDA graph: small networks are bound by launching")
    autotune: bool = option(True, "time several kernels for every product while compiling; minutes")
    batch: int = option(0, "samples of one call, others are run in pieces; 0: as many as the example has", low=0)

    def __post_init__(self) -> None:
        check_options(self)
        if self.fp8 and self.precision != "bf16":
            raise InvalidInput(f"`fp8` must come with precision 'bf16', which it gives, but got {self.precision!r}.")
        if self.sparse and self.precision not in ("fp16", "bf16"):
            raise InvalidInput(f"`sparse` must come with precision 'fp16' or 'bf16', but got {self.precision!r}.")

    def missing(self) -> str:
        """Empty if PyTorch sees a CUDA GPU that has what the options need, else what is absent."""
        from hasten.machine import has_nvidia_gpu

        if not importlib.util.find_spec("torch"):
            return "pip install torch"
        if not has_nvidia_gpu():
            return "an NVIDIA GPU and its driver: there is no CUDA GPU here"
        import torch

        if not torch.cuda.is_available():
            return "pip install torch built for CUDA: this one does not see the GPU"
        if not importlib.util.find_spec("triton"):
            return "pip install triton"
        found = torch.cuda.get_device_capability()
        wanted = {self.precision, *(["fp8"] if self.fp8 else []), *(["sparse"] if self.sparse else [])}
        for name in sorted(wanted & set(_CAPABILITY)):
            if found < _CAPABILITY[name]:
                return f"a GPU of compute capability {'.'.join(map(str, _CAPABILITY[name]))} or newer for {name}"
        return ""

    def compile(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        """Write `model.pt2` and `inputs.json` (shape and dtype of every input of one call).

        Raises:
            Unsupported: `fp8` or `sparse`, and the graph has no layer for it; or it has layers in fp8, and this GPU
                cannot multiply them.
        """
        import torch

        if torch.cuda.is_available():
            _check_capability(graph, torch.cuda.get_device_capability())
        self._compile_for("cuda", graph, task, folder)

    def _compile_for(self, device: str, graph: "GraphModule", task: "Task", folder: Path) -> None:
        from hasten.gpu import build

        _allow_tf32(self.precision == "tf32")
        program = build.lowered(graph, task.example, device, self.precision, self.fp8, self.sparse, self.batch)
        build.package(program, folder / "model.pt2", self.autotune)
        inputs, _ = program.example_inputs or ((), {})
        specs = [[list(x.shape), str(x.dtype).removeprefix("torch.")] for x in inputs]
        (folder / "inputs.json").write_text(json.dumps(specs))

    def load(self, folder: Path) -> Program:
        """The package, its launches recorded."""
        return self._load_for("cuda", folder)

    def _load_for(self, device: str, folder: Path) -> Program:
        from torch._inductor import aoti_load_package

        from hasten.gpu.replay import program_of

        _allow_tf32(self.precision == "tf32")
        # Single-threaded: the package's own synchronization cannot be recorded.
        package = aoti_load_package(str(folder / "model.pt2"), run_single_threaded=True)
        specs = json.loads((folder / "inputs.json").read_text())
        return program_of(package, specs, device, self.graphs and device == "cuda")


def _check_capability(graph: "GraphModule", found: tuple[int, int]) -> None:
    from hasten.quantization.fp8 import fp8_layer

    if found < _CAPABILITY["fp8"] and any(fp8_layer(graph, node) for node in graph.graph.nodes):
        raise Unsupported(
            f"fp8 must have a GPU of compute capability 8.9 or newer, but this one has {'.'.join(map(str, found))}. "
            "Use Quantize with weights='int8' and activations='int8'."
        )


def _allow_tf32(allowed: bool) -> None:
    """What cuBLAS and cuDNN may do with fp32; PyTorch's default lets cuDNN round operands to tf32."""
    import torch

    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
