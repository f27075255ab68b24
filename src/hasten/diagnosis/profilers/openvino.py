"""OpenVINO's performance counters: `PERF_COUNT` keeps the mean time of every node of the executed graph."""

from pathlib import Path
from typing import Any

import numpy as np

from hasten.diagnosis.profilers.record import NodeTime, Profile, alternate
from hasten.recipe import Target

_PRECISIONS = {"u8": "int8", "i8": "int8", "bf16": "bf16"}
# A counter adds up whole microseconds and is divided to whole microseconds: each cut takes half of one on average.
_CUT_US = 1.0
_ALWAYS_EXECUTED = {"Convolution", "FullyConnected", "MatMul", "Deconvolution"}


def profile(target: Target, folder: Path, inputs: list[np.ndarray], seconds: float) -> Profile:
    """Profile `model.xml` in `folder`; the counters' means are brought to the median plain call."""
    import openvino as ov

    program = target.load(folder)
    core = ov.Core()
    config: dict[str, Any] = target.plugin_config() | {"PERF_COUNT": True}  # type: ignore[attr-defined]
    compiled = core.compile_model(core.read_model(folder / "model.xml"), "CPU", config)
    request = compiled.create_infer_request()
    plain_us, profiled_us, mean_us, calls = alternate(
        lambda: program(*inputs), lambda: request.infer(inputs, share_inputs=True, share_outputs=True), seconds
    )
    # The counters are means over all calls, disturbed ones and the profiler's own cost among them.
    scale = plain_us / mean_us
    nodes = []
    for operation in compiled.get_runtime_model().get_ordered_ops():
        info = {key: str(value.astype(str)) for key, value in operation.get_rt_info().items()}
        spent = info.get("execTimeMcs", "not_executed")
        if spent == "not_executed":
            if info["layerType"] not in _ALWAYS_EXECUTED:
                continue
            spent = "-0.5"  # it took less than one microsecond, and a mean of zero is called that too
        nodes.append(
            NodeTime(
                name=operation.get_friendly_name(),
                kind=info["layerType"],
                origins=tuple(name for name in info.get("originalLayersNames", "").split(",") if name),
                time_us=(float(spent) + _CUT_US) * scale,
                precision=_PRECISIONS.get(info.get("runtimePrecision", ""), "fp32"),
                detail=info.get("primitiveType", ""),
            )
        )
    note = (
        f"counters are means over {calls} calls of {mean_us:.0f} us; times {scale:.2f} they are brought to the plain "
        f"call of {plain_us:.0f} us; 1 us is added to each for two cuts to whole microseconds"
    )
    return Profile(tuple(nodes), plain_us, profiled_us, calls, note)
