"""The arithmetic and the tensors of every node of an ONNX file, with real shapes from one run without optimisation."""

import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hasten.diagnosis.probes import Shape

COMPUTE = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "LSTM", "GRU", "RNN"}
BETWEEN = {"QuantizeLinear", "DequantizeLinear"}
_PASS = {"DequantizeLinear", "QuantizeLinear", "Transpose", "Reshape", "Identity", "Cast", "Unsqueeze", "Squeeze"}


@dataclass(frozen=True)
class Layer:
    """One node that computes.

    Attributes:
        name: Its name in the ONNX file.
        label: The model's own name for it: its weight's module where there is one.
        kind: ONNX operator.
        macs: Multiply-accumulates of one call.
        weights: Elements of constant operands.
        activations: Elements that it reads and writes beside them.
        probe: Its shape, if one layer of it can be timed alone.
    """

    name: str
    label: str
    kind: str
    macs: int
    weights: int
    activations: int
    probe: Shape | None = None


@dataclass(frozen=True)
class Work:
    """What a network has to do.

    Attributes:
        layers: Nodes with multiply-accumulates, in order.
        kinds: Operator of every node by name.
        before: For every node the nodes whose outputs it reads, by name.
        producers: Node that makes each value, by the value's name.
    """

    layers: tuple[Layer, ...]
    kinds: dict[str, str]
    before: dict[str, tuple[str, ...]] = field(repr=False)
    producers: dict[str, str] = field(repr=False)

    @property
    def weights(self) -> int:
        """Elements of all layers' weights."""
        return sum(layer.weights for layer in self.layers)

    def origin(self, name: str) -> str | None:
        """The node that a runtime's name for it leads back to, or None.

        Runtimes append to names (`relu_nchwc`, `node_conv2d_token_5`, `node_Conv_7/WithoutBiases`) or name a merged
        node after the value it makes.
        """
        while name:
            if name in self.kinds:
                return name
            if name in self.producers:
                return self.producers[name]
            cut = max(name.rfind("_"), name.rfind("/"))
            name = name[: max(cut, 0)]
        return None


def read_work(path: Path, inputs: list[np.ndarray]) -> Work:
    """Read an ONNX file and run it once to learn every shape.

    Args:
        path: The file; every operator in it must run in ONNX Runtime.
        inputs: One batch of inputs, in the order of the file.
    """
    import onnx

    model = onnx.load(path)
    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    constants = {c.name: tuple(c.dims) for c in model.graph.initializer}
    producers = {output: node.name for node in nodes for output in node.output}
    by_name = {node.name: node for node in nodes}
    shapes = _shapes(path, inputs)
    layers = [
        _layer(node, shapes[node.name], _sources(node, constants, producers, by_name))
        for node in nodes
        if node.op_type in COMPUTE and node.name in shapes
    ]
    return Work(
        layers=tuple(_distinct(layers)),
        kinds={node.name: node.op_type for node in nodes},
        before={n.name: tuple(producers[x] for x in n.input if x in producers) for n in nodes},
        producers=producers,
    )


def _shapes(path: Path, inputs: list[np.ndarray]) -> dict[str, tuple[list[Any], list[Any]]]:
    """Shapes of inputs and outputs of every executed node, by its name."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level, options.enable_profiling = 3, True
    with tempfile.TemporaryDirectory() as scratch:
        options.profile_file_prefix = os.path.join(scratch, "shapes")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        session.run(None, {x.name: array for x, array in zip(session.get_inputs(), inputs, strict=True)})
        events = json.loads(Path(session.end_profiling()).read_text())
    found = {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            sides = [
                [next(iter(x.values())) for x in event["args"][key]]
                for key in ("input_type_shape", "output_type_shape")
            ]
            found[event["name"].removesuffix("_kernel_time")] = (sides[0], sides[1])
    return found


def _sources(node: Any, constants: dict[str, Any], producers: dict[str, str], by_name: dict[str, Any]) -> list[str]:
    """For every input of `node` the constant it comes from, through conversions, or an empty string."""
    found = []
    for value in node.input:
        if not value:
            continue
        while value not in constants and value in producers and by_name[producers[value]].op_type in _PASS:
            value = by_name[producers[value]].input[0]
        found.append(value if value in constants else "")
    return found


def _layer(node: Any, shapes: tuple[list[Any], list[Any]], sources: list[str]) -> Layer:
    given, made = shapes
    sizes = [math.prod(shape) for shape in given]
    weights = sum(size for size, source in zip(sizes, sources, strict=False) if source)
    moved = sum(sizes) - weights + sum(math.prod(shape) for shape in made)
    attributes = {a.name: a for a in node.attribute}
    return Layer(
        name=node.name,
        label=_label(node, sources),
        kind=node.op_type,
        macs=_macs(node.op_type, given, made[0], attributes),
        weights=weights,
        activations=moved,
        probe=_probe(node.op_type, given, made[0], attributes, sources),
    )


def _macs(kind: str, given: list[list[int]], made: list[int], attributes: dict[str, Any]) -> int:
    out = math.prod(made)
    if kind == "Conv":
        return out * math.prod(given[1][1:])
    if kind == "ConvTranspose":
        return math.prod(given[0]) * math.prod(given[1][1:])
    if kind == "Gemm" and "transA" in attributes and attributes["transA"].i:
        return out * int(given[0][0])
    if kind in ("MatMul", "Gemm"):
        return out * int(given[0][-1])
    if kind == "Einsum":
        return _einsum(attributes["equation"].s.decode(), given)
    return math.prod(given[0][:-1]) * (
        math.prod(given[1]) + math.prod(given[2])
    )  # recurrence: every step, both matrices


def _einsum(equation: str, given: list[Any]) -> int:
    sizes: dict[str, int] = {}
    for letters, shape in zip(equation.replace(" ", "").split("->")[0].split(","), given, strict=True):
        sizes |= dict(zip(letters, shape, strict=False))
    return math.prod(sizes.values())


def _probe(kind: str, given: list[Any], made: Any, attributes: dict[str, Any], sources: list[str]) -> Shape | None:
    if len(sources) < 2 or not sources[1]:
        return None
    if kind == "Conv":
        values = {name: tuple(attributes[name].ints) for name in ("strides", "pads", "dilations") if name in attributes}
        group = attributes["group"].i if "group" in attributes else 1
        return Shape(tuple(given[0]), int(made[1]), kernel=tuple(given[1][2:]), group=group, **values)
    if kind in ("MatMul", "Gemm") and len(given[1]) == 2:
        return Shape(tuple(given[0]), int(made[-1]))
    return None


def _label(node: Any, sources: list[str]) -> str:
    weight = next((source for source in sources[1:2] if source.endswith(".weight")), "")
    return weight.removesuffix(".weight") or str(node.name.removeprefix("node_"))


def _distinct(layers: Iterable[Layer]) -> list[Layer]:
    """The same layers, with the node's name added where a label would occur twice."""
    layers = list(layers)
    counts = Counter(layer.label for layer in layers)
    return [
        layer if counts[layer.label] == 1 else Layer(**(vars(layer) | {"label": f"{layer.label} ({layer.name})"}))
        for layer in layers
    ]
