"""Ascend: the file and the command that CANN's compiler would get. A stub stands in for `atc`; it compiles nothing."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from hasten.constraints import ascend
from hasten.errors import InvalidInput, Unsupported
from hasten.graph.capture import capture
from hasten.recipe import make_target, make_technique
from hasten.task import Task

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def task_of(*layers: nn.Module) -> Task:
    torch.manual_seed(0)
    labels = torch.zeros(3, dtype=torch.int64)
    return Task(model=nn.Sequential(*layers).eval(), example=(X,), holdout=[(X, labels)])


class MeanOfParts(nn.Module):
    """Reductions and a split, which operator set 18 writes in another way."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.cat([part.amax(1) for part in x.chunk(3, 1)], 1).mean((1, 2))
        return y


@pytest.mark.parametrize("layers", [(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), (MeanOfParts(),)])
def test_the_file_is_of_an_operator_set_that_cann_names_and_gives_the_same_numbers(
    layers: tuple[nn.Module, ...], tmp_path: Path
) -> None:
    target = make_target("ascend", {"batch": 2})
    task = task_of(*layers)
    target.compile(capture(task.model, task.example), task, tmp_path)
    model = onnx.load(str(tmp_path / "model.onnx"))
    assert [entry.version for entry in model.opset_import if not entry.domain] == [17]
    assert ascend.broken(model) == []
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["checked"]
    assert report["not_checked"]
    assert report["compiler"] == "atc not run"
    with torch.no_grad():
        expected = task.model(X).numpy()
    np.testing.assert_allclose(target.load(tmp_path)(X.numpy())[0], expected, atol=1e-6)


def test_what_the_documentation_does_not_list_is_refused_by_name(tmp_path: Path) -> None:
    task = task_of(nn.Conv2d(3, 4, 3))
    graph = capture(task.model, task.example)
    target = make_target("ascend")
    with pytest.raises(Unsupported, match="Leave out Quantize"):
        target.compile(make_technique("quantize").apply(graph, task), task, tmp_path)
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.INT64, ["batch", 4])
    node = onnx.helper.make_node("Mish", ["x"], ["y"])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4])
    graph_proto = onnx.helper.make_graph([node], "g", [value], [output])
    model = onnx.helper.make_model(graph_proto, opset_imports=[onnx.helper.make_opsetid("", 18)])
    found = "; ".join(ascend.broken(model))
    assert "Mish" in found
    assert "at most 17, but is 18" in found
    assert "x has [0, 4]" in found
    assert "x is INT64" in ascend.doubts(model)[0]
    with pytest.raises(ValueError, match="Mish"):
        ascend.lowered(model)


@pytest.fixture
def stub_atc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shell script named `atc` that writes down its arguments; it shows nothing about CANN."""
    place = tmp_path / "bin"
    place.mkdir()
    script = place / "atc"
    script.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > arguments.txt\n[ -e ../refuse ] && echo E10001 >&2 && exit 1\n'
                      "touch model.om\n")  # fmt: skip
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(place), prepend=os.pathsep)
    return tmp_path


def test_the_command_line_that_a_stub_of_atc_gets(stub_atc: Path) -> None:
    folder = stub_atc / "out"
    folder.mkdir()
    options = {
        "soc_version": "Ascend310B4",
        "aipp": "rgb",
        "mean": (123.675, 116.28, 103.53),
        "std": (58.0, 57.0, 64.0),
    }
    task = task_of(nn.Conv2d(3, 4, 3))
    make_target("ascend", options).compile(capture(task.model, task.example), task, folder)
    name = onnx.load(str(folder / "model.onnx")).graph.input[0].name
    expected = [
        "--model=model.onnx",
        "--framework=5",
        "--output=model",
        f"--input_shape={name}:1,3,8,8",
        "--input_format=NCHW",
        "--soc_version=Ascend310B4",
        "--precision_mode=force_fp16",
        "--insert_op_conf=aipp.cfg",
    ]
    assert (folder / "arguments.txt").read_text().split("\n")[:-1] == expected
    assert " ".join(expected) in (folder / "atc.sh").read_text().replace("'", "")
    written = (folder / "aipp.cfg").read_text()
    assert "min_chn_2: 103.53" in written
    assert "var_reci_chn_2: 0.015625" in written
    assert "src_image_size_w: 8" in written
    assert json.loads((folder / "report.json").read_text())["compiler"].startswith("atc as found on PATH")


def test_what_a_stub_of_atc_refuses_is_reported(stub_atc: Path) -> None:
    folder = stub_atc / "out"
    folder.mkdir()
    (stub_atc / "refuse").touch()
    task = task_of(nn.Conv2d(3, 4, 3))
    with pytest.raises(Unsupported, match="E10001"):
        make_target("ascend").compile(capture(task.model, task.example), task, folder)


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InvalidInput, match="three numbers"):
        make_target("ascend", {"std": (1.0, 0.0, 1.0)})
    with pytest.raises(InvalidInput, match="precision_mode"):
        make_target("ascend", {"precision_mode": "fp8"})
