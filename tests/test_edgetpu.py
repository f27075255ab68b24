"""The Edge TPU: documented constraints on a file's operators, and what Google's compiler prints."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hasten import judged
from hasten.constraints import edgetpu
from hasten.errors import Unsupported
from hasten.graph.capture import capture
from hasten.recipe import make_target
from hasten.targets.edgetpu import read_log
from hasten.task import Task


def tensor(shape: list[int], kind: str = "INT8", **values: Any) -> dict[str, Any]:
    plain = {"constant": False, "dynamic": False, "zero": False, "bytes": 0, "scales": 1, "axis": 0, "values": None}
    return {"shape": shape, "type": kind, **plain, **values}


def operator(name: str, *inputs: dict[str, Any], output: dict[str, Any], **options: int) -> dict[str, Any]:
    return {"name": name, "inputs": list(inputs), "outputs": [output], "options": options}


IMAGE = tensor([1, 8, 8, 4])
ROW = tensor([1, 10])
WEIGHT: dict[str, Any] = {"constant": True, "scales": 4}
ZEROS = tensor([1, 8, 8, 4], constant=True, zero=True)
EVERY_OTHER = tensor([4], "INT32", constant=True, values=[1, 2, 1, 1])
STEPS = [tensor([4], "INT32", constant=True, values=[1, 1, 1, 1])] * 3


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (operator("ADD", IMAGE, IMAGE, output=IMAGE), ""),
        (operator("GELU", IMAGE, output=IMAGE), "no such operator"),
        (operator("ADD", tensor([2, 8, 8, 4]), output=IMAGE), "three innermost"),
        (operator("ADD", tensor([1, 8], "FLOAT32"), output=ROW), "is FLOAT32"),
        (operator("ADD", tensor([1, 8], dynamic=True), output=ROW), "known when compiling"),
        (operator("CONV_2D", IMAGE, tensor([4, 3, 3, 4], **WEIGHT), output=IMAGE), ""),
        (operator("CONV_2D", IMAGE, output=IMAGE, dilationHFactor=2, dilationWFactor=1), "dilation"),
        (operator("FULLY_CONNECTED", ROW, tensor([4, 10], **WEIGHT), output=ROW), "one scale per tensor"),
        (operator("FULLY_CONNECTED", ROW, output=tensor([1, 4, 10])), "one dimension larger than 1"),
        (operator("MAX_POOL_2D", IMAGE, output=IMAGE, fusedActivationFunction=1), "fused"),
        (operator("SOFTMAX", tensor([1, 20_000]), output=tensor([1, 20_000])), "16,000"),
        (operator("MEAN", tensor([1, 8, 6]), tensor([1], "INT32", constant=True, values=[2]), output=ROW), "of 4"),
        (operator("PAD", IMAGE, tensor([4, 2], "INT32", constant=True, values=[1] * 8), output=IMAGE), "batch"),
        (operator("PAD", IMAGE, tensor([4, 2], "INT32", constant=True, values=[0, 0, 1, 1]), output=IMAGE), ""),
        (operator("CONCATENATION", IMAGE, tensor([1, 8, 8, 4], constant=True), output=IMAGE), "all zeros"),
        (operator("CONCATENATION", IMAGE, tensor([1, 8, 8, 4], constant=True, zero=True), output=IMAGE), ""),
        (operator("CONCATENATION", IMAGE, IMAGE, ZEROS, output=IMAGE), "one other input"),
        (operator("CONCATENATION", IMAGE, IMAGE, output=IMAGE, fusedActivationFunction=3), "fused"),
        (operator("AVERAGE_POOL_2D", IMAGE, output=IMAGE, fusedActivationFunction=1), "fused"),
        (operator("CONV_2D", IMAGE, tensor([4, 3, 3, 4], **WEIGHT, axis=3), output=IMAGE), "one scale per tensor"),
        (operator("DEPTHWISE_CONV_2D", IMAGE, tensor([1, 3, 3, 4], **WEIGHT, axis=3), output=IMAGE), ""),
        (operator("DEPTHWISE_CONV_2D", IMAGE, tensor([1, 3, 3, 4], **WEIGHT), output=IMAGE), "one scale per tensor"),
        (operator("DEPTHWISE_CONV_2D", IMAGE, output=IMAGE, dilationHFactor=1, dilationWFactor=2), "dilation"),
        (operator("CONV_2D", IMAGE, tensor([4], "INT32", **WEIGHT), output=IMAGE), ""),
        (operator("CONV_2D", IMAGE, tensor([4], "INT64", constant=True), output=IMAGE), "a constant must be int8"),
        (operator("CONV_2D", tensor([1, 8, 8, 4], scales=4), output=IMAGE), "input 0 has 4"),
        (operator("FULLY_CONNECTED", ROW, output=ROW, weightsFormat=1), "default format"),
        (operator("SOFTMAX", ROW, output=ROW), ""),
        (operator("SOFTMAX", IMAGE, output=IMAGE), "one dimension of at most"),
        (operator("MEAN", IMAGE, tensor([1], "INT32", constant=True, values=[3]), output=ROW), ""),
        (operator("MEAN", IMAGE, tensor([1], "INT32", constant=True, values=[-4]), output=ROW), "reduce the batch"),
        (operator("SUM", tensor([1, 6]), tensor([1], "INT32", constant=True, values=[1]), output=ROW), ""),
        (operator("STRIDED_SLICE", IMAGE, *STEPS, output=IMAGE), ""),
        (operator("STRIDED_SLICE", IMAGE, *STEPS, output=IMAGE, newAxisMask=1), "without ellipsis"),
        (operator("STRIDED_SLICE", IMAGE, *STEPS[:2], EVERY_OTHER, output=IMAGE), "strides must be 1"),
        (operator("PRELU", IMAGE, tensor([1, 1, 4], constant=True), output=IMAGE), ""),
        (operator("PRELU", IMAGE, tensor([1, 8, 4], constant=True), output=IMAGE), "slope"),
        (operator("PACK", ROW, output=ROW, axis=1), ""),
        (operator("PACK", ROW, output=ROW, axis=0), "pack along the batch"),
        (operator("SPLIT", tensor([], "INT32", constant=True, values=[3]), IMAGE, output=IMAGE), ""),
        (operator("SPLIT", tensor([], "INT32", constant=True, values=[0]), IMAGE, output=IMAGE), "split the batch"),
    ],
)
def test_a_broken_constraint_is_named(one: dict[str, Any], reason: str) -> None:
    found = edgetpu.broken([one])
    assert len(found) == bool(reason)
    assert all(one["name"] in line and reason in line for line in found)


# The shape of what users of version 16 published, with other numbers.
LOG = """Edge TPU Compiler version 16.0.384591198
Input model: model.tflite
Input size: 3.75MiB
On-chip memory used for caching model parameters: 3.50MiB
On-chip memory remaining for caching model parameters: 4.00MiB
Off-chip memory used for streaming uncached model parameters: 512.00KiB
Number of Edge TPU subgraphs: 1
Total number of operations: 8

Operator                       Count      Status

CONV_2D                        5          Mapped to Edge TPU
MAX_POOL_2D                    1          Mapped to Edge TPU
QUANTIZE                       2          More than one subgraph is not supported
"""


def test_what_the_compiler_prints_becomes_judged_quantities() -> None:
    found = read_log(LOG)
    assert found["compiler"] == "edgetpu_compiler 16.0.384591198"
    assert (found["sram_bytes"], found["streamed_bytes"], found["npu_share"]) == (3.5 * 2**20, 512 * 2**10, 0.75)
    assert read_log("something else") == {}


@pytest.mark.stack("litert")
def test_a_network_that_fits_is_emitted_and_one_that_does_not_is_named(tmp_path: Path) -> None:
    target = make_target("edgetpu", {"samples": 2})
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)

    def task_of(*layers: nn.Module) -> Task:
        model = nn.Sequential(*layers).eval()
        return Task(model=model, example=(x,), holdout=[(x, torch.zeros(2, dtype=torch.int64))])

    # Weights of more than a kilobyte: the quantizer puts those behind the file, where no older compiler looks.
    task = task_of(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    target.compile(capture(task.model, task.example), task, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["broken"] == []
    assert "FULLY_CONNECTED" in report["operators"]
    assert report["checked"]
    assert report["not_checked"]
    if not (tmp_path / "model_edgetpu.tflite").exists():
        assert report["compiler"] == "not compiled by Google's compiler"
        assert judged.read(tmp_path) == {}
    task = task_of(nn.Conv2d(3, 4, 3), nn.Softmax(dim=1))
    with pytest.raises(Unsupported, match="SOFTMAX"):
        target.compile(capture(task.model, task.example), task, tmp_path)
