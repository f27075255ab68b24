"""The doctor on a small network and its artifacts: what must hold of every diagnosis, whatever the machine."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import hasten
from hasten.diagnosis.ceilings import Ceilings, Peak, ceilings, macs_of
from hasten.diagnosis.labels import modules, named
from hasten.diagnosis.probes import Shape
from hasten.diagnosis.reasons import LAYOUT, REASONS, SLOW_KERNEL, Situation, reason
from hasten.diagnosis.roofline import Floor, floor_of, raised
from hasten.diagnosis.rows import Row
from hasten.diagnosis.widths import fast_width, neighbours
from hasten.diagnosis.work import Layer, read_work
from hasten.errors import Unsupported
from hasten.recipe import Recipe
from hasten.report.doctor import diagnosis_tables

ROOT = Path(__file__).parent.parent.parent


class Net(nn.Module):
    """Three convolutions, one of them depthwise, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.wide = nn.Conv2d(32, 48, 1)
        self.head = nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.wide(torch.relu(self.depthwise(x))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def task() -> hasten.Task:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    return hasten.Task(Net().eval(), (x,), holdout=[x], name="tiny")


@pytest.fixture(scope="module")
def found(task: hasten.Task, cache: None) -> dict[str, Any]:
    diagnosis = hasten.doctor(task, seconds=0.3).to_json()
    return json.loads(json.dumps(diagnosis))


def test_every_layer_is_timed_in_every_program(found: dict[str, Any]) -> None:
    assert [layer["label"] for layer in found["layers"]] == ["stem", "depthwise", "wide", "head"]
    assert not found["failed"]
    names = [version["name"] for version in found["versions"]]
    assert {"eager fp32", "onnxruntime fp32", "onnxruntime int8"} <= set(names)
    for version in found["versions"]:
        if "half" not in version["name"]:
            assert sorted(x for row in version["rows"] for x in row["layers"]) == sorted(
                ["stem", "depthwise", "wide", "head"]
            ), version["name"]
        assert version["sum_over_whole"] > 0  # how near to 1 is for the benchmark: this machine may be busy


def test_operations_are_counted_exactly(found: dict[str, Any]) -> None:
    pixels = 32 * 32
    expected = {
        "stem": 2 * pixels * 32 * 27,
        "depthwise": 2 * pixels * 32 * 9,
        "wide": 2 * pixels * 48 * 32,
        "head": 2 * 10 * 48,
    }
    assert {layer["label"]: layer["operations"] for layer in found["layers"]} == expected
    assert {layer["label"]: layer["width"] for layer in found["layers"]} == {
        "stem": 32, "depthwise": 32, "wide": 48, "head": 10
    }  # fmt: skip


def test_no_floor_is_above_what_was_measured(found: dict[str, Any]) -> None:
    floors = [
        row for version in found["versions"] for row in version["rows"] if row["floor_us"] and row["time_us"] > 20
    ]
    assert all(row["floor_us"] <= row["time_us"] * 1.001 for row in floors)
    least = found["ceilings_ms"]["fp32"]
    whole = [v for v in found["versions"] if v["precision"] == "fp32" and "half" not in v["name"]]
    assert least <= min(v["whole_us"] for v in whole) / 1e3 * 1.001


def test_every_reason_is_on_the_list(found: dict[str, Any]) -> None:
    known = {text.split("{")[0] for text in REASONS}
    said = {row["reason"] for version in found["versions"] for row in version["rows"]}
    assert all(any(text.startswith(start) for start in known) for text in said)


def test_advice_is_a_recipe_with_the_gain_that_was_timed(found: dict[str, Any]) -> None:
    assert len(found["advice"]) <= 3
    gains = [advice["predicted_gain"] for advice in found["advice"]]
    assert gains == sorted(gains, reverse=True)
    for advice in found["advice"]:
        recipe = Recipe.from_yaml(advice["recipe"])
        assert recipe.target.missing() == ""
        assert advice["low"] <= advice["predicted_gain"] <= advice["high"]


def test_an_artifact_is_diagnosed_by_its_own_nodes(task: hasten.Task, cache: None, tmp_path: Path) -> None:
    graph = hasten.capture(task.model, task.example)
    quantized = hasten.Quantize(samples=4).apply(graph, task)
    made = hasten.compile(quantized, task, "onnxruntime", tmp_path / "int8.hasten")
    found = hasten.doctor(made, seconds=0.3).to_json()
    assert found["now"] == "onnxruntime int8 (the artifact)"
    own = next(v for v in found["versions"] if v["name"] == found["now"])
    assert {row["precision"] for row in own["rows"] if "Conv" in row["kind"]} == {"int8"}
    assert sum(len(row["layers"]) for row in own["rows"]) == 4


def test_an_artifact_without_profiler_is_refused(task: hasten.Task, cache: None, tmp_path: Path) -> None:
    graph = hasten.capture(task.model, task.example)
    made = hasten.compile(graph, task, "null", tmp_path / "null.hasten")
    with pytest.raises(Unsupported, match="hasten doctor TASK"):
        hasten.doctor(made.path)


def test_the_tables_name_layers_programs_and_limits(found: dict[str, Any]) -> None:
    written = io.StringIO()
    Console(width=220, file=written).print(diagnosis_tables(found))
    text = written.getvalue()
    for expected in ("depthwise", "onnxruntime int8", "at least", "Gop/s"):
        assert expected in text
    assert text.index("at least") < text.index("Slowest layers") < text.index("Programs") < text.index("Gop/s")
    if found["advice"]:
        assert text.index("at least") < text.index(found["advice"][0]["words"][:40]) < text.index("Slowest layers")


def test_eighty_columns_are_enough(found: dict[str, Any]) -> None:
    written = io.StringIO()
    Console(width=80, file=written).print(diagnosis_tables(found, width=80))
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    layer = next(line for line in lines if line.startswith("depthwise"))
    assert any(reason.split(",")[0].split("{")[0] in layer for reason in REASONS)


def test_columns_of_other_programs_come_with_the_room_for_them(found: dict[str, Any]) -> None:
    def columns(width: int) -> int:
        written = io.StringIO()
        Console(width=width, file=written).print(diagnosis_tables(found, width=width))
        return next(line for line in written.getvalue().splitlines() if line.startswith("layer ")).count("fp32")

    assert columns(80) == 0
    assert columns(220) >= 1


def test_the_command_prints_only_json(task: hasten.Task, cache: None, tmp_path: Path) -> None:
    graph = hasten.capture(task.model, task.example)
    made = hasten.compile(graph, task, "onnxruntime", tmp_path / "float.hasten")
    command = [sys.executable, "-m", "hasten.cli", "doctor", str(made.path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["subject"] == "float.hasten"


def test_ceilings_are_measured_once(cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ceilings()
    monkeypatch.setattr("hasten.diagnosis.ceilings.measure", lambda: pytest.fail("measured again"))
    assert ceilings() == first
    assert first.peaks["fp32"].ops_per_s > 1e9
    assert first.cache_bytes_per_s >= first.dram_bytes_per_s > 1e8
    assert first.call_us["onnxruntime"] > 0


def _limits() -> Ceilings:
    return Ceilings({}, {"fp32": Peak(1e11, "probe")}, 1e11, 1e10, 2**20, 2**25, {"x": 5.0}, {"x": 0.5}, 1.0)


def _layer(macs: int, weights: int, activations: int) -> Layer:
    return Layer("n", "layer", "Conv", macs, weights, activations)


def test_the_floor_is_the_longer_of_arithmetic_and_memory() -> None:
    compute = floor_of(_layer(50_000_000, 1000, 1000), "fp32", _limits(), 1000)
    assert compute.us == pytest.approx(1000)  # 1e8 operations at 1e11 per second
    # 100 MB of weights in a network of 200 MB: all but 32 MiB / 200 MB come from memory.
    weights = 25_000_000
    memory = floor_of(_layer(1, weights, 0), "fp32", _limits(), 2 * weights)
    beyond = 1 - 2**25 / 2e8
    cached = (1 - 2**20 / 2e8) - beyond
    assert memory.us == pytest.approx(1e8 * beyond / 1e10 * 1e6 + 1e8 * cached / 1e11 * 1e6)
    # What fits the private caches may have stayed there.
    assert floor_of(_layer(0, 1000, 100_000), "fp32", _limits(), 1000).us == 0


def test_a_layer_above_the_probes_raises_the_ceiling() -> None:
    layer = _layer(50_000_000, 1000, 1000)
    limits, words = raised(_limits(), [((layer,), "fp32", 500.0, "somewhere", 1000)])
    assert limits.peaks["fp32"].ops_per_s == pytest.approx(2e11)
    assert floor_of(layer, "fp32", limits, 1000).us == pytest.approx(500)
    assert "above the probes" in words[0]
    assert raised(_limits(), [((layer,), "fp32", 1000.0, "somewhere", 1000)])[1] == []


def test_reasons_follow_what_is_known() -> None:
    situation = Situation("x", "int8", _limits(), False, {"odd": 64})
    layer, odd = _layer(1, 1, 1), Layer("o", "odd", "Conv", 1, 1, 1)
    slow = Floor(1.0, 0.0, 0.5)

    def why(row: Row, floor: Floor | None = None) -> str:
        return reason(row, floor, situation)

    assert why(Row("q", "QuantizeLinear", (), "QuantizeLinear", 50, "fp32")) == "Q/DQ island"
    assert why(Row("r", "ReorderOutput", (), "", 50, "fp32")) == LAYOUT
    assert why(Row("c", "Conv", (layer,), "Conv", 50, "fp32"), slow) == "unsupported int8 kernel"
    assert why(Row("c", "QLinearConv", (layer,), "Conv", 50, "int8"), slow) == SLOW_KERNEL
    assert why(Row("c", "QLinearConv", (odd,), "Conv", 50, "int8"), slow) == "odd width, next fast width is 64"
    assert why(Row("c", "QLinearConv", (layer,), "Conv", 50, "int8"), Floor(40, 1, 1)) == "near its limit"
    assert why(Row("c", "QLinearConv", (layer,), "Conv", 50, "int8"), Floor(1, 40, 40)) == "memory bound"
    assert why(Row("c", "QLinearConv", (layer,), "Conv", 1, "int8"), Floor(0.1, 0, 0)) == "launch bound"
    assert why(Row("a", "Add", (), "Add", 50, "fp32")) == "unfused"
    busy = Situation("x", "fp32", _limits(), True, {})
    assert reason(Row("c", "Conv", (layer,), "Conv", 50, "fp32"), slow, busy) == "thread-oversubscribed"


def test_fast_widths_come_from_the_staircase() -> None:
    assert neighbours(63) == [56, 64]
    assert fast_width(63, {63: 10.0, 56: 9.9, 64: 6.0}) == 64
    assert fast_width(66, {66: 10.0, 64: 6.0, 72: 10.5}) == 64
    assert fast_width(64, {64: 10.0, 56: 8.9, 72: 11.0}) is None


def test_a_depthwise_probe_takes_its_inputs_along() -> None:
    depthwise = Shape((1, 32, 8, 8), 32, (3, 3), (1, 1), (1, 1, 1, 1), group=32)
    assert depthwise.at(24) == Shape((1, 24, 8, 8), 24, (3, 3), (1, 1), (1, 1, 1, 1), group=24)
    assert macs_of(depthwise) == 8 * 8 * 9 * 32
    assert macs_of(Shape((128, 64), 32)) == 128 * 64 * 32


def test_layers_have_the_names_of_the_model(tmp_path: Path) -> None:
    from hasten.graph.onnx import write_onnx

    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    example = (torch.zeros(2, 3, 8),)
    graph = hasten.capture(net, example)
    write_onnx(graph, example, tmp_path / "model.onnx")
    work = read_work(tmp_path / "model.onnx", [np.zeros((1, 3, 8), np.float32)])
    assert [layer.label for layer in named(work, modules(graph)).layers] == ["0", "2"]
    assert named(work, modules(graph)[:1]) is work
    assert named(work, [("a", 1, 1), ("b", 1, 1)]) is work


def test_names_that_runtimes_make_lead_back(tmp_path: Path, task: hasten.Task) -> None:
    from hasten.graph.onnx import write_onnx

    path = tmp_path / "model.onnx"
    write_onnx(hasten.capture(task.model, task.example), task.example, path)
    work = read_work(path, [np.zeros((1, 3, 32, 32), np.float32)])
    first = work.layers[0].name
    assert work.origin(f"{first}_nchwc") == first
    assert work.origin(f"{first}/WithoutBiases") == first
    assert work.origin("relu_nchwc") == next(n for n, kind in work.kinds.items() if kind == "Relu")
    assert work.origin("ReorderOutput_token_156") is None
