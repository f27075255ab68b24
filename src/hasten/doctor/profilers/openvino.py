"""OpenVINO's performance counters: `PERF_COUNT` keeps the mean time of every node of the executed graph."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from hasten.doctor.profilers.record import LEAST_CALLS, NodeTime, Profile
from hasten.recipe import Target

_PRECISIONS = {"u8": "int8", "i8": "int8", "bf16": "bf16"}
# Means are cut to whole microseconds, which takes half of one away on average.
_CUT_US = 0.5


def profile(target: Target, folder: Path, inputs: list[np.ndarray], seconds: float) -> Profile:
    """Profile `model.xml` in `folder`; the counters' means are brought to the median call."""
    import openvino as ov

    core = ov.Core()
    config: dict[str, Any] = target.plugin_config() | {"PERF_COUNT": True}  # type: ignore[attr-defined]
    compiled = core.compile_model(core.read_model(folder / "model.xml"), "CPU", config)
    request = compiled.create_infer_request()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST_CALLS or time.perf_counter() < end:
        start = time.perf_counter()
        request.infer(inputs, share_inputs=True, share_outputs=True)
        times.append(time.perf_counter() - start)
    # The counters are means over all calls, the first and the disturbed ones too.
    steady = float(np.median(times) / np.mean(times))
    nodes = []
    for operation in compiled.get_runtime_model().get_ordered_ops():
        info = {key: str(value.astype(str)) for key, value in operation.get_rt_info().items()}
        spent = info.get("execTimeMcs", "not_executed")
        if spent == "not_executed":
            continue
        nodes.append(
            NodeTime(
                name=operation.get_friendly_name(),
                kind=info["layerType"],
                origins=tuple(name for name in info.get("originalLayersNames", "").split(",") if name),
                time_us=(float(spent) + _CUT_US) * steady,
                precision=_PRECISIONS.get(info.get("runtimePrecision", ""), "fp32"),
                detail=info.get("primitiveType", ""),
            )
        )
    note = (
        f"means over all calls times {steady:.2f}, the median call over the mean call; "
        "0.5 us is added to each node for the profiler's cut to whole microseconds"
    )
    return Profile(tuple(nodes), float(np.median(times)) * 1e6, len(times), note)
