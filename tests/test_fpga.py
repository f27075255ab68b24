"""FPGA logic against the integers it was made from, when its environment is installed."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hasten
from hasten import judged
from hasten.errors import Unsupported
from hasten.graph.capture import capture
from hasten.graph.integer import IntegerNet
from hasten.graph.plan import plan
from hasten.graph.to_integers import integer_net
from hasten.graph.unrolled import written_out
from hasten.recipe import make_target, make_technique
from hasten.task import Task


def quantized(inputs: int = 8) -> tuple[torch.fx.GraphModule, Task]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    x = torch.randn(32, inputs)
    task = Task(model=model, example=(x,), holdout=[(x, torch.zeros(32, dtype=torch.int64))])
    return make_technique("quantize", {"placement": "symmetric"}).apply(capture(model, (x,)), task), task


def test_a_network_survives_its_file(tmp_path: Path) -> None:
    graph, task = quantized()
    net = integer_net(plan(graph, task.example))
    net.save(tmp_path)
    read = IntegerNet.load(tmp_path)
    q = net.quantize(task.example[0].numpy())
    np.testing.assert_array_equal(read.run(q), net.run(q))
    np.testing.assert_array_equal(read.dequantize(q[:, :3]), net.dequantize(q[:, :3]))


def test_what_becomes_cpp_is_not_synthesized_and_says_so(tmp_path: Path) -> None:
    graph, task = quantized(inputs=4000)
    with pytest.raises(Unsupported, match=r"at most 20,000 products.*this one has 2\d,\d{3}"):
        make_target("fpga", {"synthesis": "xilinx"}).compile(graph, task, tmp_path)


@pytest.mark.stack("fpga")
@pytest.mark.parametrize("simulator", ["interpreter", "verilator"])
def test_the_logic_equals_the_integers_bit_for_bit(simulator: str, tmp_path: Path) -> None:
    target = make_target("fpga", {"simulator": simulator, "samples": 32})
    graph, task = quantized()
    target.compile(graph, task, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["samples"] == 32
    assert report["mismatches"][simulator] == 0
    assert report["latency_cycles"] == report["stages"] + 1
    assert judged.read(tmp_path) == {"cycles": report["latency_cycles"], "initiation_interval": 1}
    assert "LGPL-3" in (tmp_path / "verilog" / "README.md").read_text()
    assert "module network" in (tmp_path / "verilog" / "src" / "network.v").read_text()
    net = IntegerNet.load(tmp_path)
    x = task.example[0].numpy()
    expected = net.dequantize(net.run(net.quantize(x)))
    np.testing.assert_array_equal(target.load(tmp_path)(x)[0], expected)


@pytest.mark.stack("fpga")
def test_the_logic_equals_the_integers_on_the_whole_holdout(digits_task: hasten.Task, tmp_path: Path) -> None:
    """By default 256 samples are checked; here the Verilog runs on every image that the task holds out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 10)).eval()
    images = [inputs for inputs, _ in digits_task.holdout]
    task = Task(model=model, example=digits_task.example, holdout=digits_task.holdout, calibration=images)
    graph = make_technique("quantize", {"placement": "symmetric"}).apply(capture(model, task.example), task)
    everything = torch.cat(images)
    target = make_target("fpga", {"samples": 10_000})
    target.compile(graph, task, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["samples"] == len(everything) >= 800
    assert report["mismatches"] == {"interpreter": 0, "verilator": 0}
    net = IntegerNet.load(tmp_path)
    x = everything.numpy()
    np.testing.assert_array_equal(target.load(tmp_path)(x)[0], net.dequantize(net.run(net.quantize(x))))


@pytest.mark.stack("fpga")
def test_designs_of_several_files_are_simulated(tmp_path: Path) -> None:
    target = make_target("fpga", {"samples": 32})
    graph, task = quantized(inputs=64)
    target.compile(graph, task, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["mismatches"] == {"interpreter": 0, "verilator": 0}


@pytest.mark.stack("fpga")
def test_the_testbench_of_the_folder_passes_in_icarus(tmp_path: Path) -> None:
    target = make_target("fpga", {"simulator": "interpreter", "samples": 8})
    if not shutil.which("iverilog"):
        pytest.skip("the testbench needs: apt install iverilog")
    graph, task = quantized()
    target.compile(graph, task, tmp_path)
    folder = tmp_path / "verilog"
    sources = (folder / "sources.txt").read_text().split()

    def run() -> subprocess.CompletedProcess[str]:
        build = ["iverilog", "-g2012", "-o", "t", "testbench.v", *sources]
        subprocess.run(build, cwd=folder, check=True, capture_output=True)
        return subprocess.run(["vvp", "t"], cwd=folder, capture_output=True, text=True, check=False)

    assert "0 of 8 samples differ" in run().stdout
    # It can fail.
    lines = (folder / "outputs.hex").read_text().split()
    (folder / "outputs.hex").write_text("\n".join(["0", *lines[1:]]))
    found = run()
    assert "1 of 8 samples differ" in found.stdout
    assert found.returncode


@pytest.mark.stack("fpga")
def test_the_logic_is_placed_and_routed(tmp_path: Path) -> None:
    target = make_target("fpga", {"simulator": "interpreter", "samples": 8, "synthesis": "ecp5"})
    graph, task = quantized()
    target.compile(graph, task, tmp_path)
    found = judged.read(tmp_path)
    assert 0 < found["luts"] < 83640
    assert found["dsps"] == found["brams"] == 0
    assert found["latency_us"] == pytest.approx(found["cycles"] / found["clock_mhz"])


def convolutional(placement: str = "symmetric") -> tuple[torch.fx.GraphModule, Task]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 3, 2, groups=3),
        nn.ReLU(),
        nn.AvgPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(12, 3),
    ).eval()
    x = torch.randn(16, 1, 8, 8)
    task = Task(model=model, example=(x,), holdout=[(x, torch.zeros(16, dtype=torch.int64))])
    return make_technique("quantize", {"placement": placement}).apply(capture(model, (x,)), task), task


@pytest.mark.parametrize("placement", ["symmetric", "fuse_clamps"])
def test_integer_convolutions_give_what_the_graph_gives_written_out_or_not(placement: str) -> None:
    graph, task = convolutional(placement)
    net = integer_net(plan(graph, task.example), 16)
    x = task.example[0].numpy()
    with torch.no_grad():
        expected = graph(*task.example).numpy()
    q = net.quantize(x)
    found = net.dequantize(net.run(q))
    # Factors of 16 bits: now and then a number is one step off between layers.
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    written = written_out(net)
    np.testing.assert_array_equal(written.run(q), net.run(q))
    assert [len(layer.weight) for layer in written.layers] == [48, 27, 12, 3]
    # Only what a filter reaches is read.
    assert (np.count_nonzero(written.layers[0].weight, axis=1) <= 9).all()
    assert written.products <= net.products


@pytest.mark.stack("fpga")
def test_the_logic_of_convolutions_equals_the_integers(tmp_path: Path) -> None:
    target = make_target("fpga", {"simulator": "interpreter", "samples": 16})
    graph, task = convolutional()
    target.compile(graph, task, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["mismatches"] == {"interpreter": 0}


def test_what_cannot_be_logic_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Softmax(1)).eval()
    x = torch.randn(4, 1, 5, 5)
    task = Task(model=model, example=(x,), holdout=[(x, torch.zeros(4))])
    graph = make_technique("quantize", {}).apply(capture(model, (x,)), task)
    with pytest.raises(Unsupported, match="softmax"):
        make_target("fpga").compile(graph, task, tmp_path)
