"""TensorRT-RTX without a GPU: engines are built, integers included."""

import inspect
import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from hasten import environments
from hasten.errors import Unsupported
from hasten.graph.capture import capture
from hasten.recipe import make_target, make_technique
from hasten.task import Task


@pytest.fixture
def task() -> Task:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    x = torch.randn(2, 3, 8, 8)
    return Task(model=nn.Sequential(*layers).eval(), example=(x,), holdout=[(x, torch.zeros(2, dtype=torch.int64))])


def test_signed_activations_have_no_zero_point_and_stay_close(task: Task) -> None:
    graph = capture(task.model, task.example)
    quantized = make_technique("quantize", {"placement": "signed"}).apply(graph, task)
    rounded = [node for node in quantized.graph.nodes if ".quantize_per_tensor" in str(node.target)]
    assert len(rounded) >= 2
    assert {node.args[2:] for node in rounded} == {(0, -128, 127, torch.int8)}
    with torch.no_grad():
        expected, found = graph(*task.example), quantized(*task.example)
    assert float((expected - found).abs().max()) < 0.05 * float(expected.abs().max())


@pytest.mark.stack("tensorrt")
def test_engines_are_built_without_a_gpu(task: Task, tmp_path: Path) -> None:
    graph = capture(task.model, task.example)
    for name, made in {
        "float": graph,
        "int8": make_technique("quantize", {"placement": "signed"}).apply(graph, task),
    }.items():
        (tmp_path / name).mkdir()
        make_target("tensorrt", {"largest": 8}).compile(made, task, tmp_path / name)
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert report["bytes"] == (tmp_path / name / "model.engine").stat().st_size
        assert (len(report["inputs"]), report["outputs"]) == (1, ["output_0"])
        assert bool(report["quantize"]) == (name == "int8")
    strange = Task(model=_Strange(), example=(torch.rand(2, 3),), holdout=[(torch.rand(2, 3), torch.zeros(2))])
    with pytest.raises(Unsupported, match="airy"):
        make_target("tensorrt").compile(capture(strange.model, strange.example), strange, tmp_path)


@pytest.mark.stack("tensorrt")
def test_weights_beyond_protobuf_s_limit_are_found_beside_the_file(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.graph.onnx._PROTOBUF_LIMIT_BYTES", 0)
    make_target("tensorrt").compile(capture(task.model, task.example), task, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["bytes"] > 0


def test_activations_with_a_zero_point_are_refused(task: Task, tmp_path: Path) -> None:
    graph = make_technique("quantize", {"placement": "fuse_clamps"}).apply(capture(task.model, task.example), task)
    with pytest.raises(Unsupported, match="placement='signed'"):
        make_target("tensorrt").compile(graph, task, tmp_path)


class _Strange(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.airy_ai(x.double()).float()


@pytest.mark.stack("tensorrt")
def test_what_loading_calls_is_there() -> None:
    """Without a GPU no engine runs, but a name that these bindings lack is found here."""
    source = inspect.getsource(type(make_target("tensorrt")).load)
    owners = {"trt": "trt", "runtime": "trt.Runtime", "engine": "trt.ICudaEngine", "context": "trt.IExecutionContext"}
    used = {f"{owners[who]}.{what}" for who, what in re.findall(r"\b(trt|runtime|engine|context)\.(\w+)\(", source)}
    assert len(used) >= 8
    names = "; ".join(sorted(used))
    code = f"import tensorrt_rtx_bindings as trt; {names}; trt.Runtime(trt.Logger(trt.Logger.ERROR))"
    subprocess.run([str(environments.python_of("tensorrt")), "-c", code], check=True)
