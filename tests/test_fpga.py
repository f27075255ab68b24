"""FPGA logic against the integers it was made from, when its environment is installed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hasten.errors import Unsupported
from hasten.graph.capture import capture
from hasten.graph.integer import integer_net
from hasten.graph.plan import plan
from hasten.recipe import make_target, make_technique
from hasten.stacks import fpga
from hasten.task import Task


def quantized() -> tuple[torch.fx.GraphModule, Task]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    x = torch.randn(32, 8)
    task = Task(model=model, example=(x,), holdout=[(x, torch.zeros(32, dtype=torch.int64))])
    return make_technique("quantize", {"placement": "symmetric"}).apply(capture(model, (x,)), task), task


def test_a_network_survives_its_file(tmp_path: Path) -> None:
    graph, task = quantized()
    net = integer_net(plan(graph, task.example))
    fpga.save(net, tmp_path)
    read = fpga.read(tmp_path)
    q = net.quantize(task.example[0].numpy())
    np.testing.assert_array_equal(read.run(q), net.run(q))
    np.testing.assert_array_equal(read.dequantize(q[:, :3]), net.dequantize(q[:, :3]))


@pytest.mark.parametrize("simulator", ["interpreter", pytest.param("verilator", marks=pytest.mark.slow)])
def test_the_logic_equals_the_integers_bit_for_bit(simulator: str, tmp_path: Path) -> None:
    target = make_target("fpga", {"simulator": simulator, "samples": 32})
    if missing := target.missing():
        pytest.skip(f"fpga needs: {missing}")
    graph, task = quantized()
    target.compile(graph, task, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["samples"] == 32
    assert report["mismatches"][simulator] == 0
    assert report["latency_cycles"] == report["stages"] + 1
    assert "module network" in (tmp_path / "verilog" / "src" / "network.v").read_text()
    net = fpga.read(tmp_path)
    x = task.example[0].numpy()
    expected = net.dequantize(net.run(net.quantize(x)))
    np.testing.assert_array_equal(target.load(tmp_path)(x)[0], expected)


def test_a_convolution_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval()
    x = torch.randn(4, 1, 5, 5)
    task = Task(model=model, example=(x,), holdout=[(x, torch.zeros(4))])
    graph = make_technique("quantize", {}).apply(capture(model, (x,)), task)
    with pytest.raises(Unsupported, match=r"aten\.conv2d|linear layers"):
        make_target("fpga").compile(graph, task, tmp_path)
