"""What targets hand to the stacks that compile for them, and what they make of the answers, without the stacks."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from hasten import judged
from hasten.errors import Unsupported
from hasten.graph import interpret
from hasten.graph.capture import capture
from hasten.graph.plan import Plan
from hasten.recipe import make_target, make_technique
from hasten.task import Task

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Calls = list[tuple[str, str, dict[str, Any]]]
OPERATOR: dict[str, Any] = {"name": "RELU", "options": {}, "inputs": [], "outputs": []}


def task_of(*layers: nn.Module, rows: int = 4) -> Task:
    torch.manual_seed(0)
    labels = torch.zeros(len(X), dtype=torch.int64)
    return Task(model=nn.Sequential(*layers).eval(), example=(X[:rows],), holdout=[(X, labels)])


def convolutional(rows: int = 4) -> Task:
    return task_of(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5), rows=rows)


class Strange(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.airy_ai(x.double()).float()


def compile_to(folder: Path, name: str, task: Task, **options: Any) -> None:
    make_target(name, options).compile(capture(task.model, task.example), task, folder)


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Calls]:
    """Answers in place of every stack, and keeps what it was asked; `seen` looks at the folder while it is there."""

    def stand_in(seen: Callable[[str, dict[str, Any]], None] = lambda *_: None, **answers: Any) -> Calls:
        calls: Calls = []

        def call(name: str, function: str, **values: Any) -> Any:
            calls.append((name, function, values))
            seen(function, values)
            return answers.get(function, {})

        monkeypatch.setattr("hasten.environments.call", call)
        return calls

    return stand_in


@pytest.mark.parametrize(
    ("target", "options", "needed"),
    [
        ("edgetpu", {}, "litert"),
        ("ethos_u", {}, "litert"),
        ("executorch", {}, "executorch"),
        ("fpga", {}, "fpga"),
        ("fpga", {"flow": "hls"}, "hls"),
        ("iree", {}, "iree"),
        ("litert", {}, "litert"),
        ("rknn", {}, "rknn"),
        ("tensorrt", {}, "tensorrt"),
        ("tpu", {}, "tpu"),
        ("xla", {}, "xla"),
    ],
)
def test_what_is_missing_is_the_command_that_installs_it(target: str, options: dict[str, Any], needed: str) -> None:
    assert make_target(target, options).missing() == f"hasten targets install {needed}"


@pytest.mark.parametrize("name", ["tpu", "rknn"])
def test_an_operator_that_cannot_be_said_is_named_before_a_compiler_starts(
    name: str, stack: Callable[..., Calls], tmp_path: Path
) -> None:
    calls = stack()
    with pytest.raises(Unsupported, match="airy"):
        compile_to(tmp_path, name, task_of(Strange()))
    assert calls == []


@pytest.mark.parametrize("name", ["edgetpu", "ethos_u", "litert", "rknn"])
def test_tools_that_quantize_themselves_get_no_quantized_graph(
    name: str, stack: Callable[..., Calls], tmp_path: Path
) -> None:
    calls = stack()
    task = convolutional()
    graph = make_technique("quantize", {}).apply(capture(task.model, task.example), task)
    with pytest.raises(Unsupported, match="Leave out Quantize"):
        make_target(name).compile(graph, task, tmp_path)
    assert calls == []


def test_a_tpu_gets_a_plan_that_computes_the_same(stack: Callable[..., Calls], tmp_path: Path) -> None:
    calls = stack()
    task = convolutional()
    compile_to(tmp_path, "tpu", task, chip="v6e", chips=2, precision="fp32")
    expected = {"chip": "v6e", "batch": 4, "chips": 2, "precision": "fp32", "folder": tmp_path.absolute()}
    assert calls == [("tpu", "compile", expected)]
    plan = Plan.load(tmp_path)
    with torch.no_grad():
        wanted = task.model(X).numpy()
    np.testing.assert_allclose(interpret.run(plan, [X.numpy()])[0], wanted, atol=1e-5)
    # More chips than the batch divides over are refused before the compiler starts.
    with pytest.raises(Unsupported, match="6 samples do not over 4"):
        compile_to(tmp_path, "tpu", task, chips=4, batch=6)
    assert len(calls) == 1


@pytest.mark.parametrize(("precision", "samples"), [("int8", 3), ("fp16", 0)])
def test_rockchip_gets_a_file_of_fixed_sizes_and_samples(
    precision: str, samples: int, stack: Callable[..., Calls], tmp_path: Path
) -> None:
    seen: list[np.ndarray] = []

    def look(_: str, values: dict[str, Any]) -> None:
        seen.extend(np.load(path) for path in sorted(Path(values["calibration"]).glob("*.npy")))

    calls = stack(look, compile={"cycles": 12, "npu_share": 1.0, "tool": "rknn-toolkit2 0"})
    compile_to(tmp_path, "rknn", convolutional(), precision=precision, samples=3, platform="rv1106")
    assert [call[:2] for call in calls] == [("rknn", "compile")]
    assert [len(x) for x in seen] == ([samples] if samples else [])
    if samples:
        np.testing.assert_array_equal(seen[0][:, 0], X[:3].numpy())
    model = onnx.load(str(tmp_path / "model.onnx"))
    (opset,) = (entry.version for entry in model.opset_import if not entry.domain)
    assert opset <= 19
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 8, 8]
    settings = json.loads((tmp_path / "build.json").read_text())
    assert (settings["platform"], settings["precision"], settings["batch"]) == ("rv1106", precision, 1)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["evidence"], report["tool"]) == ("estimated", "rknn-toolkit2 0")
    assert judged.read(tmp_path) == {"cycles": 12, "npu_share": 1.0}


def write_model(_: str, values: dict[str, Any]) -> None:
    (values["folder"] / "model.tflite").write_bytes(b"file")


def test_vela_gets_the_file_and_its_statement_is_judged(stack: Callable[..., Calls], tmp_path: Path) -> None:
    calls = stack(write_model, compile={"cycles": 7.0, "sram_bytes": 8.0, "tool": "vela"})
    compile_to(tmp_path, "ethos_u", convolutional(), accelerator="ethos-u85-256", batch=2, samples=4)
    (first, _, how), (second, _, values) = calls
    assert (first, how["int8"], how["inputs"], how["linear_per_channel"]) == ("litert", True, 1, True)
    assert (second, values["accelerator"]) == ("ethos_u", "ethos-u85-256")
    assert judged.read(tmp_path) == {"cycles": 7.0, "sram_bytes": 8.0}


def test_what_stays_on_the_host_is_named_unless_it_is_wanted(stack: Callable[..., Calls], tmp_path: Path) -> None:
    stack(write_model, operators=[OPERATOR, OPERATOR | {"name": "GELU"}, OPERATOR | {"name": "ERF"}])
    with pytest.raises(Unsupported, match=r"GELU \(operator 1\).*2 such in all; `host=True`"):
        compile_to(tmp_path, "edgetpu", convolutional())
    compile_to(tmp_path, "edgetpu", convolutional(), host=True)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["operators"] == ["RELU", "GELU", "ERF"]
    assert [line.split()[0] for line in report["broken"]] == ["GELU", "ERF"]
    assert report["compiler"] == "not compiled by Google's compiler"
    assert judged.read(tmp_path) == {}


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writes a shell script named `edgetpu_compiler`; it shows nothing about Google's."""

    def write(script: str) -> None:
        place = tmp_path / "bin"
        place.mkdir(exist_ok=True)
        (place / "edgetpu_compiler").write_text(f"#!/bin/sh\n{script}\n")
        (place / "edgetpu_compiler").chmod(0o755)
        monkeypatch.setenv("PATH", str(place), prepend=os.pathsep)

    return write


def test_a_compiler_on_path_is_run_and_what_it_says_is_kept(
    stack: Callable[..., Calls], stub: Callable[[str], None], tmp_path: Path
) -> None:
    stack(write_model, operators=[OPERATOR])
    (folder := tmp_path / "out").mkdir()
    said = "Edge TPU Compiler version 16.0\nOn-chip memory used for caching model parameters: 2.00KiB\nRELU  1  Mapped"
    stub(f'echo "$@" > arguments.txt; touch model_edgetpu.tflite; echo "{said}"')
    compile_to(folder, "edgetpu", convolutional())
    assert (folder / "arguments.txt").read_text().split() == ["--show_operations", "--out_dir", ".", "model.tflite"]
    assert judged.read(folder) == {"sram_bytes": 2048.0, "npu_share": 1.0}
    assert json.loads((folder / "report.json").read_text())["compiler"] == "edgetpu_compiler 16.0"
    # It may say nothing is wrong and write nothing.
    (folder / "model_edgetpu.tflite").unlink()
    stub("echo Internal compiler error")
    with pytest.raises(Unsupported, match="Internal compiler error"):
        compile_to(folder, "edgetpu", convolutional())


@pytest.mark.parametrize("name", ["executorch", "iree"])
def test_runtimes_get_a_program_of_one_batch_size(name: str, stack: Callable[..., Calls], tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []

    def look(_: str, values: dict[str, Any]) -> None:
        if name == "executorch":
            seen.extend(tuple(np.load(path).shape) for path in values["folder"].glob("example_*.npy"))
            (x,) = torch.export.load(values["folder"] / "model.pt2").module()(torch.zeros(2, 3, 8, 8)).shape[:1]
            assert x == 2
        else:
            (spec,) = Plan.load(values["folder"]).inputs
            seen.append((values["batch"], *(size or 0 for size in spec.shape[1:])))

    stack(look, compile={"delegated": 1, "left": {}})
    compile_to(tmp_path, name, convolutional(), batch=2)
    assert seen == [(2, 3, 8, 8)]
