"""OpenVINO's performance counters: `PERF_COUNT` keeps the mean time of every node of the executed graph."""

import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hasten.diagnosis.probes import write_chain
from hasten.diagnosis.profilers.record import CALL, NodeTime, Profile, alternate
from hasten.recipe import Program, Target
from hasten.unreported import import_openvino

_PRECISIONS = {"u8": "int8", "i8": "int8", "bf16": "bf16"}
# A counter adds up whole microseconds and is divided to whole microseconds: each cut takes half of one on average.
_CUT_US = 1.0
_ROUNDS = 3
# The first calls set up memory and kernels, mostly outside of the nodes: what the counters held by then is taken off.
_WARM_CALLS = 3
_CHAIN, _CHAIN_SECONDS = 33, 0.3
_ALWAYS_EXECUTED = {"Convolution", "FullyConnected", "MatMul", "Deconvolution"}


def profile(target: Target, folder: Path, inputs: list[np.ndarray], seconds: float) -> Profile:
    """Profile `model.xml` in `folder`; the counters' means are brought to the undisturbed plain call."""
    program = target.load(folder)
    start_us = _start_us(target)
    call_us = _call_us(target, inputs, start_us)
    # Counters cannot be set back: of several compilations the one that was disturbed least counts.
    rounds = [_round(target, folder, program, inputs, seconds / _ROUNDS) for _ in range(_ROUNDS)]
    plain_us = min(found.plain_us for found in rounds)
    best = min(rounds, key=lambda found: found.mean_us)
    scale = plain_us / best.mean_us
    nodes = [replace(node, time_us=node.time_us + start_us) for node in _nodes(best, scale)]
    called = NodeTime(CALL, CALL, (), call_us)
    note = (
        f"counters are means over {best.calls} calls of {best.mean_us:.0f} us, the least disturbed of {_ROUNDS} "
        f"rounds; times {scale:.2f} they are brought to the plain call of {plain_us:.0f} us; 1 us is added to each for "
        f"two cuts to whole microseconds, and {start_us:.1f} us that starting a node takes outside of its counter; the "
        "call itself is what a graph that only reads these inputs takes beside reading them"
    )
    return Profile((called, *nodes), plain_us, min(found.profiled_us for found in rounds), best.calls, note)


@dataclass(frozen=True)
class _Round:
    operations: list[Any]
    warm_us: dict[str, float]
    plain_us: float
    profiled_us: float
    mean_us: float
    calls: int


def _round(target: Target, folder: Path, program: Program, inputs: list[np.ndarray], seconds: float) -> _Round:
    ov = import_openvino()

    core = ov.Core()
    config: dict[str, Any] = target.plugin_config() | {"PERF_COUNT": True}  # type: ignore[attr-defined]
    compiled = core.compile_model(core.read_model(folder / "model.xml"), "CPU", config)
    profiled = target.bound(compiled)  # type: ignore[attr-defined]
    for _ in range(_WARM_CALLS):
        profiled(*inputs)
    warm = {op.get_friendly_name(): _counted_us(_info(op)) for op in compiled.get_runtime_model().get_ordered_ops()}
    times = alternate(lambda: program(*inputs), lambda: profiled(*inputs), seconds)
    operations = _of_calls(compiled.get_runtime_model().get_ordered_ops())
    return _Round(operations, {name: spent for name, spent in warm.items() if spent is not None}, *times)


def _of_calls(operations: list[Any]) -> list[Any]:
    """Without those that read constants alone: they ran once, before the first call, which their counters still say."""
    constants: set[str] = set()
    for operation in operations:
        sources = [port.get_source_output().get_node().get_friendly_name() for port in operation.inputs()]
        if _info(operation)["layerType"] == "Const" or (sources and constants.issuperset(sources)):
            constants.add(operation.get_friendly_name())
    return [operation for operation in operations if operation.get_friendly_name() not in constants]


def _info(operation: Any) -> dict[str, str]:
    return {key: str(value.astype(str)) for key, value in operation.get_rt_info().items()}


def _counted_us(info: dict[str, str]) -> float | None:
    """The mean of all calls so far, or None for what was not executed."""
    spent = info.get("execTimeMcs", "not_executed")
    if spent != "not_executed":
        return float(spent) + _CUT_US
    # It took less than one microsecond: a mean of zero is called not executed too.
    return _CUT_US / 2 if info["layerType"] in _ALWAYS_EXECUTED else None


def _nodes(found: _Round, scale: float) -> list[NodeTime]:
    """What was executed, its times brought to a call that is `scale` times as long."""
    return [node for operation in found.operations if (node := _node(operation, found, scale)) is not None]


def _node(operation: Any, found: _Round, scale: float) -> NodeTime | None:
    """One executed operation, or None for one that was not executed."""
    info = _info(operation)
    mean_us = _counted_us(info)
    if mean_us is None:
        return None
    warm_us = found.warm_us.get(operation.get_friendly_name(), mean_us)
    return NodeTime(
        name=operation.get_friendly_name(),
        kind=info["layerType"],
        origins=tuple(name for name in info.get("originalLayersNames", "").split(",") if name),
        time_us=max(0.0, mean_us + (mean_us - warm_us) * _WARM_CALLS / found.calls) * scale,
        precision=_PRECISIONS.get(info.get("runtimePrecision", ""), "fp32"),
        detail=info.get("primitiveType", ""),
        elements=_elements(operation),
    )


def _elements(operation: Any) -> int:
    ports = [*operation.inputs(), *operation.outputs()]
    shapes = [port.get_partial_shape() for port in ports]
    return sum(math.prod(shape.to_shape()) for shape in shapes if shape.is_static)


def _start_us(target: Target) -> float:
    """What a node costs beside its counter: a chain of many against one."""
    ov = import_openvino()

    with tempfile.TemporaryDirectory() as scratch:
        beside = []
        for length in (1, _CHAIN):
            shape = write_chain(length, path := Path(scratch) / "model.onnx", parallel=True)
            beside.append(_beside_us(target, ov.convert_model(path), [np.ones(shape, np.float32)])[0])
    return max(0.0, (beside[1] - beside[0]) / (_CHAIN - 1))


def _call_us(target: Target, inputs: list[np.ndarray], start_us: float) -> float:
    """What a call with these inputs costs beside its nodes: copying them in, and going there and back."""
    ov = import_openvino()

    read = []
    for x in inputs:
        values = ov.opset13.parameter(x.shape, x.dtype)
        read.append((values, ov.opset13.reduce_max(values, np.arange(x.ndim), keep_dims=False)))
    model = ov.Model([reduced for _, reduced in read], [values for values, _ in read])
    beside_us, count = _beside_us(target, model, inputs)
    return max(0.0, beside_us - count * start_us)


def _beside_us(target: Target, model: Any, inputs: list[np.ndarray]) -> tuple[float, int]:
    """What a plain call of a small graph takes that no counter shows, and how many counters there are."""
    ov = import_openvino()

    with tempfile.TemporaryDirectory() as scratch:
        ov.save_model(model, Path(scratch) / "model.xml", compress_to_fp16=False)
        found = _round(target, Path(scratch), target.load(Path(scratch)), inputs, _CHAIN_SECONDS)
    counted = _nodes(found, found.plain_us / found.mean_us)
    return found.plain_us - sum(node.time_us for node in counted), len(counted)
