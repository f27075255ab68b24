"""Tiny ONNX graphs of one layer, in any precision and width, and their time in a runtime."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hasten.unreported import import_openvino

_TURNS = 7
_TURN_SECONDS = 0.02
_OPSET = 21


@dataclass(frozen=True)
class Shape:
    """One convolution or matrix product.

    Attributes:
        data: Shape of its input: [1, channels, *space] of a convolution, [..., rows, depth] of a product.
        width: Output channels.
        kernel, strides, pads, dilations: Of a convolution; an empty kernel means a matrix product.
        group: Of a convolution.
    """

    data: tuple[int, ...]
    width: int
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    group: int = 1

    def at(self, width: int) -> "Shape":
        """The same layer with another number of output channels; a depthwise one takes its inputs along."""
        if self.group > 1 and self.group == self.width == self.data[1]:
            return replace(self, width=width, group=width, data=(self.data[0], width, *self.data[2:]))
        return replace(self, width=width)


def write_probe(shape: Shape, precision: str, path: Path) -> None:
    """Write a graph of this one layer; "int8" takes uint8 in and gives uint8 out, as inside a quantized network."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    conv = bool(shape.kernel)
    weight_shape = (shape.width, shape.data[1] // shape.group, *shape.kernel) if conv else (shape.data[-1], shape.width)
    axis = 0 if conv else 1
    attributes: dict[str, Any] = dict(
        kernel_shape=shape.kernel, strides=shape.strides, pads=shape.pads, group=shape.group
    )
    if conv and shape.dilations:
        attributes["dilations"] = shape.dilations
    layer = helper.make_node("Conv" if conv else "MatMul", ["a", "b"], ["c"], **(attributes if conv else {}))
    if precision == "int8":
        scale = np.float32(0.02)
        constants = {
            "w": generator.integers(-127, 128, weight_shape).astype(np.int8),
            "ws": np.full(shape.width, 0.01, np.float32),
            "wz": np.zeros(shape.width, np.int8),
            "s": scale,
            "z": np.uint8(128),
            "ys": np.float32(1.0),
        }
        nodes = [
            helper.make_node("DequantizeLinear", ["x", "s", "z"], ["a"]),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["b"], axis=axis),
            layer,
            helper.make_node("QuantizeLinear", ["c", "ys", "z"], ["y"]),
        ]
        kind = TensorProto.UINT8
    else:
        constants = {"b": generator.normal(size=weight_shape).astype(np.float32)}
        layer.input[0], layer.output[0], nodes, kind = "x", "y", [layer], TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", kind, shape.data)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10), path)


def write_chain(length: int, path: Path, *, parallel: bool = False) -> tuple[int, ...]:
    """A chain of equal small operators that no runtime merges, and the shape of its input.

    Args:
        length: How many.
        path: The ONNX file to write.
        parallel: Convolutions that are worth splitting among threads; else operators that are hardly any work, so that
            what is left of their time is what launching costs.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    names = ["x", *(f"h{i}" for i in range(length - 1)), "y"]
    pairs = list(itertools.pairwise(names))
    shape: tuple[int, ...] = (1, 8)
    constants = []
    if parallel:
        shape = (1, 16, 32, 32)
        constants = [numpy_helper.from_array(np.full((16, 16, 3, 3), 0.005, np.float32), "w")]
        nodes = [helper.make_node("Conv", [a, "w"], [b], pads=[1, 1, 1, 1]) for a, b in pairs]
    else:
        nodes = [helper.make_node("Softmax", [a], [b], axis=1) for a, b in pairs]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10), path)
    return shape


def time_probes(runtime: str, paths: list[Path], precision: str) -> list[float]:
    """Microseconds per call of every graph in one runtime, all in turns: the best turn's median.

    The best turn, because a probe says what the machine can do, not what its other tenants left of it.
    """
    calls = [_LOADERS[runtime](path, precision) for path in paths]
    times = np.full((len(calls), _TURNS), np.inf)
    for call in calls:
        _turn(call)
    for turn in range(_TURNS):
        for index, call in enumerate(calls):
            times[index, turn] = _turn(call)
    return [float(x) * 1e6 for x in times.min(1)]


def _turn(call: Callable[[], Any]) -> float:
    found: list[float] = []
    end = time.perf_counter() + _TURN_SECONDS
    while len(found) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return float(np.median(found))


def _onnxruntime(path: Path, precision: str) -> Callable[[], Any]:
    import onnxruntime as ort

    from hasten.recipe import make_target

    del precision
    options = make_target("onnxruntime").session_options()  # type: ignore[attr-defined]
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    value = session.get_inputs()[0]
    feeds = {value.name: _data(value.shape, np.uint8 if "uint8" in value.type else np.float32)}
    return lambda: session.run(None, feeds)


def _openvino(path: Path, precision: str) -> Callable[[], Any]:
    ov = import_openvino()

    from hasten.recipe import make_target

    core = ov.Core()
    target = make_target("openvino", {"precision": "bf16" if precision == "bf16" else "fp32"})
    config = target.plugin_config()  # type: ignore[attr-defined]
    compiled = core.compile_model(core.read_model(path), "CPU", config)
    port, program = compiled.inputs[0], target.bound(compiled)  # type: ignore[attr-defined]
    data = _data(list(port.shape), np.uint8 if port.get_element_type() == ov.Type.u8 else np.float32)
    return lambda: program(data)


def _data(shape: list[int], dtype: Any) -> np.ndarray:
    generator = np.random.default_rng(0)
    made: np.ndarray = generator.integers(0, 255, shape).astype(dtype)
    return made / 255 if dtype == np.float32 else made


_LOADERS: dict[str, Callable[[Path, str], Callable[[], Any]]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
