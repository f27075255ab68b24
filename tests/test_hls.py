"""HLS C++ against the integers it was made from, when its environment is installed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hasten import judged
from hasten.errors import Unsupported
from hasten.graph.capture import capture
from hasten.graph.integer import IntegerNet
from hasten.recipe import Target, make_target, make_technique
from hasten.task import Task

pytestmark = pytest.mark.stack("hls")


def hls(**options: object) -> Target:
    return make_target("fpga", {"flow": "hls", **options})


def quantized(model: nn.Module, x: torch.Tensor, placement: str = "symmetric") -> tuple[torch.fx.GraphModule, Task]:
    task = Task(model=model.eval(), example=(x,), holdout=[(x, torch.zeros(len(x), dtype=torch.int64))])
    return make_technique("quantize", {"placement": placement}).apply(capture(model, (x,)), task), task


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def test_the_cpp_equals_the_integers_bit_for_bit(tmp_path: Path) -> None:
    graph, task = quantized(convolutional(), torch.randn(24, 2, 11, 12))
    hls().compile(graph, task, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["samples"], report["mismatches"]) == (24, {"g++": 0})
    # Nothing is known of cells and clocks without the vendor's tool.
    assert judged.read(tmp_path) == {}
    project = tmp_path / "hls"
    assert "Vitis was not run" in (project / "README.md").read_text()
    assert "conv_2d" in (project / "firmware" / "network.cpp").read_text()
    assert not list(project.rglob("*.so"))
    inputs, outputs = (
        np.loadtxt(project / "tb_data" / f"tb_{n}.dat") for n in ("input_features", "output_predictions")
    )
    net = IntegerNet.load(tmp_path)
    first = inputs.reshape(24, 11, 12, 2).transpose(0, 3, 1, 2).reshape(24, -1).astype(np.int64)
    np.testing.assert_array_equal(net.run(first), outputs)
    x = task.example[0].numpy()
    np.testing.assert_array_equal(hls().load(tmp_path)(x)[0], net.dequantize(net.run(net.quantize(x))))


def test_large_networks_become_cpp_by_themselves(tmp_path: Path) -> None:
    graph, task = quantized(nn.Sequential(nn.Linear(160, 128), nn.ReLU(), nn.Linear(128, 3)), torch.randn(8, 160))
    make_target("fpga").compile(graph, task, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["flow"] == "hls"
    assert report["products"] > 20_000
    assert report["mismatches"] == {"g++": 0}


def test_what_hls_has_no_form_of_is_refused(tmp_path: Path) -> None:
    target = hls(samples=2)
    x = torch.randn(4, 2, 6, 6)
    for model, why in ((nn.Conv2d(2, 3, 3, dilation=2), "dilated"), (nn.Conv2d(2, 4, 3, groups=2), "grouped")):
        (folder := tmp_path / why).mkdir()
        features = model(x).flatten(1).shape[1]
        graph, task = quantized(nn.Sequential(model, nn.ReLU(), nn.Flatten(), nn.Linear(features, 2)), x)
        with pytest.raises(Unsupported, match=why):
            target.compile(graph, task, folder)
