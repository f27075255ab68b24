"""OpenVINO on the CPU: the captured graph as `model.xml` + `model.bin`, read through its ONNX frontend."""

import importlib.util
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from hasten.errors import InvalidInput
from hasten.recipe import Program, check_options, option
from hasten.unreported import import_openvino

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task

_PRECISION_HINT = {"fp32": "f32", "bf16": "bf16"}


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO's CPU plugin."""

    evidence: ClassVar[str] = "timed"
    # Linear layers may read activations that are rounded as they come.
    dynamic_activations: ClassVar[bool] = True
    # 8-bit products run on the CPU's own instructions, so `compile` checks that they cannot saturate.
    runs_on_cpu: ClassVar[bool] = True
    # (bits, group) of weights alone that its kernels multiply from memory as they are, as compressed weights.
    packed_weights: ClassVar[tuple[tuple[int, int | None], ...]] = ((8, None), (4, 32), (4, 128))
    placements: ClassVar[tuple[str, ...]] = ("fuse_activations",)

    threads: int = option(
        0, "threads inside one call; 0: every core this process may use", low=0, high=1024, at_load=True, timed=(0, 1)
    )
    precision: Literal["fp32", "bf16"] = option(
        "fp32",
        "arithmetic of whatever is not quantized",
        choices=("fp32", "bf16"),
        grid=("fp32", "bf16"),
        at_load=True,
    )

    def __post_init__(self) -> None:
        check_options(self)

    def missing(self) -> str:
        """Empty if the `openvino` package can be imported and the CPU has what `precision` needs."""
        if not importlib.util.find_spec("openvino"):
            return "pip install 'hasten[openvino]'"
        from hasten.machine import cpu_has_bf16

        return "a CPU with bf16 arithmetic" if self.precision == "bf16" and not cpu_has_bf16() else ""

    def compile(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        """Write `model.xml` and `model.bin` in full precision; the plugin lowers to `precision` when loaded."""
        from hasten.graph.onnx import write_onnx

        with tempfile.TemporaryDirectory() as scratch:
            # Its ExportedProgram frontend fails on quantize/dequantize operators, its ONNX frontend does not.
            write_onnx(self.readable(graph), task.example, Path(scratch) / "model.onnx")
            self.convert(Path(scratch) / "model.onnx", folder)

    def readable(self, graph: "GraphModule") -> "GraphModule":
        """`graph` in the operators that `convert` reads as they are meant; itself where it has no others."""
        from hasten.graph.resize import resize_by_products
        from hasten.quantization.average_pool import averages_as_convolutions
        from hasten.quantization.packing import pack_products

        # Of an antialiased Resize, the frontend leaves the antialiasing out.
        return pack_products(averages_as_convolutions(resize_by_products(graph)), rounds_inputs=True)

    def convert(self, source: Path, folder: Path) -> None:
        """Write `model.xml` and `model.bin` from an ONNX file."""
        ov = import_openvino()

        with tempfile.TemporaryDirectory() as scratch:
            read = _without_zero_points(source, Path(scratch))
            ov.save_model(ov.convert_model(read), folder / "model.xml", compress_to_fp16=False)

    def plugin_config(self) -> dict[str, Any]:
        """How a program of this target runs: threads and precision; also for whoever profiles it."""
        from hasten.machine import usable_cores

        # Without the hint OpenVINO runs fp32 models in bf16 by itself where the CPU can.
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _PRECISION_HINT[self.precision],
            "INFERENCE_NUM_THREADS": self.threads or usable_cores(),
        }

    def load(self, folder: Path) -> Program:
        """A compiled model with one inference request; inputs are bound by position."""
        ov = import_openvino()

        # OpenVINO reads whatever else is in the file as what it looks like, and its reader of ONNX takes weights from
        # any address in memory that the file names.
        with (folder / "model.xml").open("rb") as file:
            if not file.read(64).lstrip().startswith((b"<?xml", b"<net")):
                raise InvalidInput(f"{folder / 'model.xml'} must be OpenVINO's XML, but is something else.")
        core = ov.Core()
        compiled = core.compile_model(core.read_model(folder / "model.xml"), "CPU", self.plugin_config())
        return self.bound(compiled)

    def bound(self, compiled: Any) -> Program:
        """A program of one request of a compiled model, whose input memory is kept from call to call.

        `InferRequest.infer` looks at the Python types of all that it is given and answers with a dictionary, at every
        call anew and with caches that the network has just emptied: 0.1 to 0.3 ms, a fifth of a small int8 network.
        Copying into memory that is known costs a few microseconds.
        """
        ov = import_openvino()

        request = compiled.create_infer_request()
        types = [port.element_type for port in compiled.inputs]
        outputs = range(len(compiled.outputs))
        memory: list[np.ndarray | None] = [None] * len(types)

        def program(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
            for index, x in enumerate(inputs):
                kept = memory[index]
                if kept is None or kept.shape != x.shape:
                    tensor = ov.Tensor(types[index], ov.Shape(x.shape))
                    request.set_input_tensor(index, tensor)
                    kept = memory[index] = tensor.data
                np.copyto(kept, x)
            request.start_async()
            request.wait()
            return tuple(request.get_output_tensor(index).data.copy() for index in outputs)

        return program


def _at(path: Path, other: Path) -> None:
    """Give a file a second name; a link that shows its target would be refused by whoever reads it."""
    try:
        other.hardlink_to(path)
    except OSError:  # on another file system
        shutil.copyfile(path, other)


def _without_zero_points(path: Path, folder: Path) -> Path:
    """The same in `folder` without the zero points of weights that are all 0; `path` itself where there are none.

    The ONNX file holds equal ones once. Where a convolution and linear layers share them, `convert_model` gives all of
    them one constant, and OpenVINO then neither folds it nor finds the integer product: they run in float.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path, load_external_data=False)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    dropped = 0
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or len(node.input) < 3 or node.input[0] not in held:
            continue
        zero_point = held.get(node.input[2])
        if zero_point is None or zero_point.data_location == onnx.TensorProto.EXTERNAL:
            continue
        if not numpy_helper.to_array(zero_point).any():
            del node.input[2]
            dropped += 1
    if not dropped:
        return path
    for beside in path.parent.iterdir():  # weights may stand in a file of their own
        if beside != path:
            _at(beside, folder / beside.name)
    onnx.save(model, folder / path.name)
    return folder / path.name
