"""Rockchip: what its compiler prints, and where its environment is installed, what it makes of a network."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from hasten import environments, judged
from hasten.errors import Unsupported
from hasten.graph.capture import capture
from hasten.recipe import make_target, make_technique
from hasten.stacks import rknn
from hasten.stacks.rknn import read_log
from hasten.task import Task

# Of the form that rknn-toolkit2 2.5.0 printed for another network.
LOG = """
I rknn-toolkit2 version: 2.5.0
D RKNN: [02:49:24.958] ID   OpType             DataType Target InputShape     OutputShape   Cycles(DDR/NPU/Total)  RW(KB)  FullName
D RKNN: [02:49:24.958] 0    InputOperator      INT8     NPU    \\              (1,3,8,8)     0/0/0                  0       InputOperator:x
D RKNN: [02:49:24.958] 1    ConvRelu           INT8     NPU    (1,3,8,8),(8)  (1,8,8,8)     111/576/576            1       Conv:a
D RKNN: [02:49:24.958] 2    Reshape            INT8     CPU    (1,4,1,1),(2)  (1,4)         30/0/30                0       Reshape:b
D RKNN: [02:49:24.958] 3    OutputOperator     INT8     CPU    (1,4)          \\             0/0/0                  0       OutputOperator:y
D RKNN: [02:49:24.959] Total Internal Memory Size: 4.5KB
D RKNN: [02:49:24.959] Total Weight Memory Size: 1.25MB
"""  # noqa: E501


def test_what_the_compiler_prints_becomes_judged_quantities() -> None:
    found = read_log(LOG)
    assert found.pop("operators") == ["ConvRelu on NPU", "Reshape on CPU"]
    assert found == {"cycles": 606, "npu_share": 0.5, "activation_bytes": 4608.0, "weight_bytes": 1.25 * 2**20}
    assert read_log("nothing of that kind") == {}


class Toolkit:
    """Stands in for `rknn.api.RKNN`: keeps what it was told, fails where it is told to."""

    said: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    failing: ClassVar[str] = ""

    def __init__(self, verbose: bool) -> None:
        self.said.clear()
        if verbose:
            os.write(1, LOG.encode())

    def __getattr__(self, name: str) -> Any:
        def step(*_: object, **values: Any) -> int:
            if name == "build" and values["do_quantization"]:
                values["rows"] = len(Path(values["dataset"]).read_text().splitlines())
            self.said.append((name, values))
            if name == "export_rknn" and self.failing != name:
                Path(str(_[0])).write_bytes(b"made")
            if name == self.failing == "load_onnx":
                raise RuntimeError("Traceback\n  somewhere\nMeet unsupport op Airy")
            return int(name == self.failing)

        return step


@pytest.fixture
def toolkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder as the target hands it over, and the stand-in."""
    monkeypatch.setitem(sys.modules, "rknn", ModuleType("rknn"))
    api = ModuleType("rknn.api")
    api.RKNN = Toolkit  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rknn.api", api)
    monkeypatch.setattr(Toolkit, "failing", "")
    settings = {"platform": "rk3566", "precision": "int8", "algorithm": "mmse", "inputs": 1, "batch": 1}
    (folder := tmp_path / "folder").mkdir()
    (folder / "build.json").write_text(json.dumps(settings))
    np.save(tmp_path / "calibration_0.npy", np.zeros((5, 1, 3), np.float32))
    return folder


def test_the_toolkit_is_told_what_was_chosen(toolkit: Path) -> None:
    found = rknn.compile(toolkit, str(toolkit.parent))
    assert (found["tool"], found["cycles"]) == ("rknn-toolkit2 2.5.0", 606)
    said = dict(Toolkit.said)
    assert said["config"] == {"target_platform": "rk3566", "quantized_algorithm": "mmse"}
    assert said["load_onnx"] == {"model": str(toolkit / "model.onnx")}
    assert (said["build"]["do_quantization"], said["build"]["rows"]) == (True, 5)
    assert (toolkit / "model.rknn").read_bytes() == b"made"
    assert "target_platform='rk3566'" in (toolkit / "build.py").read_text()


@pytest.mark.parametrize(
    ("step", "words"), [("config", "its log"), ("load_onnx", "unsupport op Airy"), ("export_rknn", "write model.rknn")]
)
def test_a_step_that_the_toolkit_refuses_is_reported(
    step: str, words: str, toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toolkit, "failing", step)
    with pytest.raises(Unsupported, match=words):
        rknn.compile(toolkit, str(toolkit.parent))


@pytest.mark.stack("rknn")
def test_the_compiler_states_its_cost_and_the_simulator_runs_int8(tmp_path: Path) -> None:
    target = make_target("rknn", {"samples": 8})
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    x = torch.randn(8, 3, 8, 8)
    model = nn.Sequential(*layers).eval()
    task = Task(model=model, example=(x,), holdout=[(x, torch.zeros(8, dtype=torch.int64))])
    graph = capture(model, (x,))
    with pytest.raises(Unsupported, match="Leave out Quantize"):
        target.compile(make_technique("quantize").apply(graph, task), task, tmp_path)
    target.compile(graph, task, tmp_path)
    found = judged.read(tmp_path)
    assert set(found) == {"cycles", "npu_share", "activation_bytes", "weight_bytes"}
    assert found["cycles"] > 0
    # 8 x 3 x 3 x 3 + 4 x 8 weights and what pads them.
    assert 248 <= found["weight_bytes"] < 20_000
    assert (tmp_path / "model.rknn").stat().st_size > 1000
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["evidence"] == "estimated"
    assert "board" in report["not_run"]
    compile((tmp_path / "build.py").read_text(), "build.py", "exec")
    assert len((tmp_path / "dataset.txt").read_text().splitlines()) == 8
    program = target.load(tmp_path)
    (y,) = program(x[:3].numpy())
    with torch.no_grad():
        expected = model(x[:3]).numpy()
    error = np.abs(y - expected).max() / np.abs(expected).max()
    # Rounded, and not by much.
    assert 1e-4 < error < 0.05


def test_a_list_may_end_in_packages_without_their_dependencies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HASTEN_ENVS", str(tmp_path))
    monkeypatch.setattr("venv.create", lambda folder, **_: Path(folder).mkdir())
    calls: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        calls.append(command[4:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("subprocess.run", run)
    environments.install("rknn")
    environments.install("ethos_u")
    with_dependencies, alone, plain = ([part for part in call if not part.startswith("--d")] for call in calls)
    assert "torch==2.13.0" in with_dependencies
    assert not any("rknn" in part or "#" in part for part in with_dependencies)
    assert alone == ["--no-deps", "rknn-toolkit2==2.5.0"]
    assert plain == environments.requirements("ethos_u").split()
