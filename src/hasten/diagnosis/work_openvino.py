"""The arithmetic and the tensors of every node of an OpenVINO model, at one batch size."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from hasten.diagnosis.probes import Shape
from hasten.diagnosis.work import Layer, Work
from hasten.unreported import import_openvino

_CONVOLUTIONS = {"Convolution", "GroupConvolution"}
_TRANSPOSED = {"ConvolutionBackpropData", "GroupConvolutionBackpropData"}
_COMPUTE = {*_CONVOLUTIONS, *_TRANSPOSED, "MatMul"}
_PASS = {"Convert", "Multiply", "Subtract", "Transpose", "Reshape", "FakeQuantize"}
# The same words as in ONNX, so that reasons need one vocabulary.
_WORDS = {"Convolution": "Conv", "GroupConvolution": "Conv", "FakeQuantize": "QuantizeLinear"}


def read_work(path: Path, inputs: list[np.ndarray]) -> Work:
    """Read `model.xml` with its inputs reshaped to those given."""
    ov = import_openvino()

    model = ov.Core().read_model(path)
    model.reshape({port: list(x.shape) for port, x in zip(model.inputs, inputs, strict=True)})
    layers: list[Layer] = []
    kinds: dict[str, str] = {}
    before: dict[str, tuple[str, ...]] = {}
    producers: dict[str, str] = {}
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind in ("Constant", "Parameter", "Result"):
            continue
        name = node.get_friendly_name()
        kinds[name] = _WORDS.get(kind, kind)
        sources = [value.get_node() for value in node.input_values()]
        before[name] = tuple(
            s.get_friendly_name() for s in sources if s.get_type_name() not in ("Constant", "Parameter")
        )
        for port in node.outputs():
            producers |= dict.fromkeys(port.get_names(), name)
        if kind in _COMPUTE:
            layers.append(_layer(node, [_constant(source) for source in sources]))
    return Work(tuple(layers), kinds, before, producers)


def _constant(node: Any) -> str:
    """The name of the constant that a value comes from through conversions, or an empty string."""
    while node.get_type_name() in _PASS:
        node = node.input_value(0).get_node()
    return str(node.get_friendly_name()) if node.get_type_name() == "Constant" else ""


def _layer(node: Any, sources: list[str]) -> Layer:
    kind = node.get_type_name()
    given = [list(x.get_shape()) for x in node.input_values()]
    made = list(node.output(0).get_shape())
    sizes = [math.prod(shape) for shape in given]
    weights = sum(size for size, source in zip(sizes, sources, strict=True) if source)
    name = str(node.get_friendly_name())
    label = next((s.removesuffix(".weight") for s in sources[1:] if s.endswith(".weight")), name.removeprefix("node_"))
    return Layer(
        name=name,
        label=label,
        kind=_WORDS.get(kind, kind),
        macs=_macs(node, kind, given, made),
        weights=weights,
        activations=sum(sizes) - weights + math.prod(made),
        probe=_probe(node, kind, given, made, sources),
    )


def _macs(node: Any, kind: str, given: list[list[int]], made: list[int]) -> int:
    if kind == "MatMul":
        transposed = node.get_attributes()["transpose_a"] and len(given[0]) > 1
        return math.prod(made) * int(given[0][-2 if transposed else -1])
    grouped = 2 if kind.startswith("Group") else 1  # [groups, out, in, ...] or [out, in, ...]
    return math.prod(given[0] if kind in _TRANSPOSED else made) * math.prod(given[1][grouped:])


def _probe(node: Any, kind: str, given: list[Any], made: Any, sources: list[str]) -> Shape | None:
    if not sources[1] or kind in _TRANSPOSED:
        return None
    if kind == "MatMul":
        return Shape(tuple(given[0]), int(made[-1])) if len(given[1]) == 2 else None
    values = node.get_attributes()
    grouped = kind.startswith("Group")
    return Shape(
        data=tuple(given[0]),
        width=int(made[1]),
        kernel=tuple(given[1][3 if grouped else 2 :]),
        strides=tuple(values["strides"]),
        pads=(*values["pads_begin"], *values["pads_end"]),
        dilations=tuple(values["dilations"]),
        group=int(given[1][0]) if grouped else 1,
    )
