"""OpenVINO's performance counters: `PERF_COUNT` keeps the mean time of every node of the executed graph."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.diagnosis.probes import write_chain
from hasten.diagnosis.profilers.record import CALL, NodeTime, Profile, alternate
from hasten.recipe import Program, Target

_PRECISIONS = {"u8": "int8", "i8": "int8", "bf16": "bf16"}
# A counter adds up whole microseconds and is divided to whole microseconds: each cut takes half of one on average.
_CUT_US = 1.0
_ROUNDS = 3
_CALL_SECONDS = 0.3
_ALWAYS_EXECUTED = {"Convolution", "FullyConnected", "MatMul", "Deconvolution"}


def profile(target: Target, folder: Path, inputs: list[np.ndarray], seconds: float) -> Profile:
    """Profile `model.xml` in `folder`; the counters' means are brought to the undisturbed plain call."""
    program = target.load(folder)
    call_us = _call_us(target)
    # Counters cannot be set back: of several compilations the one that was disturbed least counts.
    rounds = [_round(target, folder, program, inputs, seconds / _ROUNDS) for _ in range(_ROUNDS)]
    plain_us = min(found.plain_us for found in rounds)
    best = min(rounds, key=lambda found: found.mean_us)
    scale = plain_us / best.mean_us
    nodes = [node for operation in best.operations if (node := _node(operation, scale)) is not None]
    called = NodeTime(CALL, CALL, (), call_us)
    note = (
        f"counters are means over {best.calls} calls of {best.mean_us:.0f} us, the least disturbed of {_ROUNDS} "
        f"rounds; times {scale:.2f} they are brought to the plain call of {plain_us:.0f} us; 1 us is added to each for "
        "two cuts to whole microseconds; the call itself is that of a graph of one tiny operator"
    )
    return Profile((called, *nodes), plain_us, min(found.profiled_us for found in rounds), best.calls, note)


@dataclass(frozen=True)
class _Round:
    operations: list[Any]
    plain_us: float
    profiled_us: float
    mean_us: float
    calls: int


def _round(target: Target, folder: Path, program: Program, inputs: list[np.ndarray], seconds: float) -> _Round:
    import openvino as ov

    core = ov.Core()
    config: dict[str, Any] = target.plugin_config() | {"PERF_COUNT": True}  # type: ignore[attr-defined]
    compiled = core.compile_model(core.read_model(folder / "model.xml"), "CPU", config)
    request = compiled.create_infer_request()
    times = alternate(
        lambda: program(*inputs), lambda: request.infer(inputs, share_inputs=True, share_outputs=True), seconds
    )
    return _Round(compiled.get_runtime_model().get_ordered_ops(), *times)


def _node(operation: Any, scale: float) -> NodeTime | None:
    """One executed operation, or None for one that was not executed."""
    info = {key: str(value.astype(str)) for key, value in operation.get_rt_info().items()}
    spent = info.get("execTimeMcs", "not_executed")
    if spent == "not_executed":
        if info["layerType"] not in _ALWAYS_EXECUTED:
            return None
        spent = "-0.5"  # it took less than one microsecond, and a mean of zero is called that too
    return NodeTime(
        name=operation.get_friendly_name(),
        kind=info["layerType"],
        origins=tuple(name for name in info.get("originalLayersNames", "").split(",") if name),
        time_us=(float(spent) + _CUT_US) * scale,
        precision=_PRECISIONS.get(info.get("runtimePrecision", ""), "fp32"),
        detail=info.get("primitiveType", ""),
        elements=_elements(operation),
    )


def _elements(operation: Any) -> int:
    ports = [*operation.inputs(), *operation.outputs()]
    shapes = [port.get_partial_shape() for port in ports]
    return sum(math.prod(shape.to_shape()) for shape in shapes if shape.is_static)


def _call_us(target: Target) -> float:
    """What a call costs beside its nodes: that of a graph of one operator that is hardly any work."""
    import openvino as ov

    with tempfile.TemporaryDirectory() as scratch:
        shape = write_chain(1, path := Path(scratch) / "model.onnx")
        core = ov.Core()
        compiled = core.compile_model(core.read_model(path), "CPU", target.plugin_config())  # type: ignore[attr-defined]
    request, x = compiled.create_infer_request(), np.ones(shape, np.float32)

    def call() -> None:
        request.infer([x], share_inputs=True, share_outputs=True)

    return alternate(call, call, _CALL_SECONDS)[0]
