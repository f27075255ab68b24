"""ONNX Runtime's own profiler: `enable_profiling` writes one event per executed node."""

import json
import os
import re
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from hasten.doctor.profilers.record import LEAST_CALLS, NodeTime, Profile
from hasten.recipe import Target

_SUFFIX = "_kernel_time"
# Durations are cut to whole microseconds, which takes half of one away on average.
_CUT_US = 0.5
_INTEGER = re.compile(r"QLinear|Integer|QGemm|QAttention|NhwcMaxPool")


def profile(target: Target, folder: Path, inputs: list[np.ndarray], seconds: float) -> Profile:
    """Profile `model.onnx` in `folder`; times are medians over the calls."""
    import onnxruntime as ort

    options: Any = target.session_options()  # type: ignore[attr-defined]
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as scratch:
        options.profile_file_prefix = os.path.join(scratch, "profile")
        session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        feeds = dict(zip((value.name for value in session.get_inputs()), inputs, strict=True))
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < LEAST_CALLS or time.perf_counter() < end:
            start = time.perf_counter()
            session.run(None, feeds)
            times.append(time.perf_counter() - start)
        events = json.loads(Path(session.end_profiling()).read_text())
    found: dict[str, list[float]] = defaultdict(list)
    kinds: dict[str, str] = {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(_SUFFIX):
            name = event["name"].removesuffix(_SUFFIX)
            # Two nodes may carry one name: the runtime's own number of the node tells them apart.
            key = f"{name}\0{event['args'].get('node_index', '')}"
            found[key].append(event["dur"] + _CUT_US)
            kinds[key] = event["args"]["op_name"]
    nodes = [
        NodeTime(
            name=(name := key.split("\0")[0]),
            kind=kinds[key],
            origins=(name,),
            time_us=float(np.median(durations)),
            precision="int8" if _INTEGER.search(kinds[key]) else "fp32",
        )
        for key, durations in found.items()
    ]
    note = "medians; 0.5 us is added to each node for the profiler's cut to whole microseconds"
    return Profile(tuple(nodes), float(np.median(times)) * 1e6, len(times), note)
