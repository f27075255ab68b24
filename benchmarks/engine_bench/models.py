"""Networks with random weights, written as artifacts without torch; only their time matters."""

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hasten import artifact
from hasten.recipe import Recipe, make_target


def convolutional(
    folder: Path, name: str, *, size: int, channels: int, layers: int, raw: bool = False, target: str = "onnxruntime"
) -> Path:
    """An artifact of `layers` 3x3 convolutions of `channels`, [rows, 3, size, size] to [rows, 10].

    Batching gains little on a CPU, as with most convolutional networks: rows per second say what the runtime can do.
    `raw`: uint8 [rows, size, size, 3] in, normalised inside the graph.
    """
    generator = np.random.default_rng(0)
    weights: list[Any] = []
    nodes: list[Any] = []

    def constant(key: str, value: Any) -> str:
        weights.append(numpy_helper.from_array(np.asarray(value, np.float32), key))
        return key

    last = "x"
    if raw:
        nodes += [
            helper.make_node("Cast", ["x"], ["cast"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["cast"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Mul", ["planes", constant("scale", SCALE.reshape(1, 3, 1, 1))], ["scaled"]),
            helper.make_node("Add", ["scaled", constant("shift", SHIFT.reshape(1, 3, 1, 1))], ["normalised"]),
        ]
        last = "normalised"
    width = 3
    for i in range(layers):
        weight = generator.normal(size=(channels, width, 3, 3)) * (2 / (9 * width)) ** 0.5
        stride = 2 if i == 0 else 1
        nodes += [
            helper.make_node(
                "Conv", [last, constant(f"w{i}", weight)], [f"c{i}"], pads=[1, 1, 1, 1], strides=[stride, stride]
            ),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"]),
        ]
        last, width = f"r{i}", channels
    head = generator.normal(size=(channels, 10)) / channels**0.5
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", constant("head", head)], ["y"]),
    ]
    shape = [size, size, 3] if raw else [3, size, size]
    dtype = np.uint8 if raw else np.float32
    example = generator.integers(0, 256, (8, *shape)).astype(dtype)
    if not raw:
        example = generator.normal(size=(8, *shape)).astype(dtype)
    kind = TensorProto.UINT8 if raw else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", kind, ["batch", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return _write(folder, name, model, target, example)


SCALE = (1 / (255 * np.array([0.229, 0.224, 0.225]))).astype(np.float32)
SHIFT = (-np.array([0.485, 0.456, 0.406]) / np.array([0.229, 0.224, 0.225])).astype(np.float32)


def _write(folder: Path, name: str, model: Any, target: str, example: np.ndarray) -> Path:
    compiled = folder / f"{name}-compiled"
    compiled.mkdir()
    onnx.save(model, compiled / "model.onnx")
    if target == "openvino":
        import openvino as ov

        ov.save_model(ov.convert_model(compiled / "model.onnx"), compiled / "model.xml", compress_to_fp16=False)
        (compiled / "model.onnx").unlink()
    made = make_target(target)
    spec = {"name": "x", "dtype": str(example.dtype), "shape": [None, *example.shape[1:]]}
    outputs = made.load(compiled)(example)
    return artifact.write(folder / f"{name}.hasten", compiled, Recipe((), made), [spec], [example], outputs).path


# About 0.25 ms and 6 ms per image on one core of a server CPU.
SMALL = {"size": 48, "channels": 32, "layers": 6}
LARGE = {"size": 96, "channels": 64, "layers": 8}


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest, largest, and how many."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "repeats": len(values)}


def alone(program: Callable[..., Any], x: np.ndarray, lanes: int, seconds: float) -> tuple[float, float]:
    """Rows per second of `lanes` threads that call the program in a loop, and CPU seconds per row."""
    counts = [0] * lanes
    end = time.perf_counter() + seconds

    def run(lane: int) -> None:
        while time.perf_counter() < end:
            program(x)
            counts[lane] += 1

    threads = [threading.Thread(target=run, args=(lane,)) for lane in range(lanes)]
    start, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = sum(counts) * len(x)
    return rows / (time.perf_counter() - start), (time.process_time() - cpu) / rows
