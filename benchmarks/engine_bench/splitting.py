"""One graph over two targets: a bed where it pays, one where it cannot, and a real pair that decides by itself."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hasten
from hasten.artifact import Artifact
from hasten.engine.runner import Runner, open_artifact
from hasten.errors import Unsupported
from hasten.graph.capture import capture


class Network(nn.Module):
    """Convolutions, then a head of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(4):
            layers += [nn.Conv2d(3 if i == 0 else 32, 32, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4))
        self.head = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 10))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x).flatten(1))
        return y


def network() -> tuple[Any, hasten.Task]:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 32, 32)
    task = hasten.Task(Network().eval(), (x,), [(x, torch.zeros(8, dtype=torch.int64))])
    return capture(task.model, task.example), task


# Seconds per batch and operator, by target: an accelerator for convolutions that does linear layers on a slow core
# beside a CPU; and two devices that are equally good at everything, each of which rather takes whole batches.
UNLIKE = {"openvino": {"Conv": 0.002, "Gemm": 0.020}, "onnxruntime": {"Conv": 0.010, "Gemm": 0.002}}
ALIKE = {"openvino": {"Conv": 0.005, "Gemm": 0.005}, "onnxruntime": {"Conv": 0.005, "Gemm": 0.005}}


def simulated(rates: Mapping[str, Mapping[str, float]], path: Path) -> Runner:
    """SIMULATED: the artifact's own answers, after as long as these operators would take on the device."""
    import onnx
    import openvino as ov

    runner = open_artifact(path, replicas=1, threads=1)
    target = Artifact(path).manifest["target"]["name"]
    if target == "onnxruntime":
        kinds = [node.op_type for node in onnx.load(path / "model.onnx").graph.node]
    else:
        names = {"Convolution": "Conv", "MatMul": "Gemm"}
        kinds = [names.get(op.get_type_name(), "") for op in ov.Core().read_model(path / "model.xml").get_ops()]
    seconds = sum(rates[target].get("Gemm" if kind == "MatMul" else kind, 0.0) for kind in kinds)
    program = runner.lanes[0]

    def slow(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        start = time.perf_counter()
        outputs = program(*inputs)
        time.sleep(max(0.0, seconds - (time.perf_counter() - start)))
        return outputs

    return replace(runner, lanes=(slow,), name=f"simulated {target}")


def beds() -> dict[str, Any]:
    graph, task = network()
    found: dict[str, Any] = {}
    for name, options in (
        ("simulated accelerator for convolutions and CPU", {"opener": partial(simulated, UNLIKE)}),
        ("two simulated devices that are equally good at everything", {"opener": partial(simulated, ALIKE)}),
        ("OpenVINO and ONNX Runtime on the same cores", {}),
    ):
        with tempfile.TemporaryDirectory() as scratch:
            try:
                made = hasten.split(graph, task, out=Path(scratch) / "split", turns=7, **options)  # type: ignore[arg-type]
            except Unsupported as error:
                found[name] = {"accepted": False, "message": str(error)}
                continue
            found[name] = {
                "accepted": True,
                "gain": made.gain,
                "targets": list(made.targets),
                "after": made.cut.after,
                "rows/s": made.rows_per_s,
            }
    return found
