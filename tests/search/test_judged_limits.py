"""A search under limits on what targets judge without a device: no timing of candidates, no speed-up anywhere."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import hasten
import hasten.targets
from hasten import judged
from hasten.cli import app
from hasten.errors import InvalidInput
from hasten.measure.artifacts import time_artifacts
from hasten.quantities import parse_limits
from hasten.report.data import run_data
from hasten.report.table import result_table
from hasten.search.space import usable_targets
from hasten.task import Budget

QUICK = Budget(max_drop=0.02, training=False)

# A target of this test alone: ONNX Runtime stands in for a device whose "luts" are the graph's stored numbers, one per
# bit. It is a file, because compilers and workers are processes of their own.
COUNTED = '''
"""For a test: stored numbers are counted, nothing is timed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Counted:
    """For a test."""

    evidence = "simulated"
    placements = ("fuse_clamps",)
    judges = {"luts": {}, "npu_share": {}}

    def missing(self):
        return ""

    def compile(self, graph, task, folder):
        from hasten import judged
        from hasten.graph.onnx import write_onnx

        write_onnx(graph, task.example, folder / "model.onnx")
        numbers = [*graph.parameters(), *graph.buffers()]
        luts = sum(x.numel() * x.element_size() * 8 for x in numbers)
        judged.write(folder, {"luts": luts, "npu_share": 1.0, "cycles": 7})

    def load(self, folder):
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda x: tuple(session.run(None, {name: x}))
'''


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The target, in this process and in those that it starts."""
    place, start = tmp_path_factory.mktemp("added"), tmp_path_factory.mktemp("start")
    (place / "counted.py").write_text(COUNTED)
    (start / "sitecustomize.py").write_text(f"import hasten.targets\nhasten.targets.__path__.append({str(place)!r})\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hasten.targets, "__path__", [*hasten.targets.__path__, str(place)])
        patch.setenv("PYTHONPATH", str(start), prepend=":")
        yield
    sys.modules.pop("hasten.targets.counted", None)


@pytest.fixture(scope="module")
def result(counted: None, digits_task: hasten.Task, tmp_path_factory: pytest.TempPathFactory) -> hasten.Result:
    out = tmp_path_factory.mktemp("run") / "run"
    return hasten.run(digits_task, QUICK, targets="counted", limits={"luts": 10_000_000}, out=out)


def test_the_best_within_the_limits_ships_with_what_was_judged(result: hasten.Result) -> None:
    assert result.best is not None
    certificate, measurements = result.best.certificate, result.best.measurements
    assert certificate is not None
    assert measurements is not None
    assert certificate["passed"]
    # Quantized weights take a quarter of the bits.
    by_name = {trial.name.split("(")[0]: trial.judged["luts"] for trial in result.trials[1:]}
    assert by_name["quantize"] < by_name["counted"] / 2
    for document in (certificate, measurements, json.loads((result.best.path / "certificate.json").read_text())):
        assert document["judged"]["luts"] == min(by_name.values())
        assert document["limits"] == {"luts": 10_000_000}
        assert document["evidence"] == "simulated"
    assert "latency" not in measurements
    assert result.best_of == {"counted": result.best}
    assert hasten.verify(result.best.path).deviation < 1e-5


def test_what_is_judged_is_certified_again_and_not_timed(result: hasten.Result, tmp_path: Path) -> None:
    assert result.best is not None
    examples = str(Path(__file__).parents[2] / "examples" / "digits.py")
    again = CliRunner().invoke(app, ["verify", str(result.best.path), "--task", examples])
    assert again.exit_code == 0, again.output
    assert "certifying samples" in again.output
    with pytest.raises(InvalidInput, match=r"is for counted.*for its numbers alone \(simulated\)"):
        time_artifacts([result.best.path])


def test_nothing_judged_is_timed_or_called_faster(result: hasten.Result) -> None:
    assert all(trial.latency is None and trial.ratio == 0 for trial in result.trials[1:])
    assert [trial.number for trial in result.trials if trial.latency] == [0]
    assert all(final.latency is None and final.throughput is None for final in result.finals)
    assert "simulated, not timed" in result.explanation
    assert "faster" not in result.explanation
    document = json.loads((result.folder / "result.json").read_text())
    assert all(trial["evidence"] == "simulated" for trial in document["trials"][1:])
    table = result_table(document).plain
    assert "faster" not in table
    assert "luts" in table.splitlines()[1]


def test_the_report_has_what_was_judged(result: hasten.Result) -> None:
    data = run_data(result.folder)
    best = next(t for t in data["trials"] if t["number"] == data["best_number"])
    assert best["judged"]["luts"] <= 10_000_000
    assert best["evidence"] == "simulated"
    assert "latency_ms" not in data.get("details", {})
    assert "Judged, not timed" in result.report.read_text()


def test_if_nothing_fits_the_nearest_is_named(counted: None, digits_task: hasten.Task, tmp_path: Path) -> None:
    result = hasten.run(digits_task, QUICK, targets="counted", limits={"luts": 100}, out=tmp_path / "run")
    assert result.best is None
    assert result.finals == []
    assert "Nothing that kept the accuracy was within the limits. Nearest: quantize" in result.explanation
    assert "of at most 100 (simulated)" in result.explanation


@pytest.mark.slow
def test_what_does_not_fit_is_pruned_until_it_does(counted: None, digits_task: hasten.Task, tmp_path: Path) -> None:
    whole = hasten.run(digits_task, QUICK, targets="counted", limits={"luts": 1e9}, out=tmp_path / "whole")
    fewest = min(trial.judged["luts"] for trial in whole.trials[1:])
    budget = Budget(max_drop=0.05, minutes=4)
    found = hasten.run(digits_task, budget, targets="counted", limits={"luts": 0.8 * fewest}, out=tmp_path / "pruned")
    assert found.best is not None
    assert found.best.certificate is not None
    assert found.best.certificate["judged"]["luts"] <= 0.8 * fewest


def test_limits_and_targets_must_go_together(counted: None) -> None:
    with pytest.raises(InvalidInput, match=r"counted is simulated.*--limit.*luts"):
        usable_targets("counted")
    with pytest.raises(InvalidInput, match="onnxruntime is timed and counted is simulated"):
        usable_targets("counted,onnxruntime", {"luts": 1})
    with pytest.raises(InvalidInput, match="onnxruntime is timed"):
        usable_targets("onnxruntime", {"luts": 1})
    with pytest.raises(InvalidInput, match="is timed"):
        usable_targets("auto", {"luts": 1})
    with pytest.raises(InvalidInput, match=r"hbm_bytes is not: counted judges luts, npu_share"):
        usable_targets("counted", {"luts": 1, "hbm_bytes": 1})
    assert list(usable_targets("counted", {"luts": 1})[0]) == ["counted"]


def test_a_budget_refuses_unknown_names_and_speeds() -> None:
    with pytest.raises(InvalidInput, match="Did you mean 'luts'"):
        Budget(limits={"lut": 1})
    with pytest.raises(InvalidInput, match="at least 0"):
        Budget(limits={"luts": -1})
    with pytest.raises(InvalidInput, match="not timed"):
        Budget(limits={"luts": 1}, objective="throughput")
    with pytest.raises(InvalidInput, match="not timed"):
        Budget(limits={"luts": 1}, max_latency_ms=1.0)
    assert parse_limits(["luts=4e4", "hbm_bytes=16GB"]) == {"luts": 40_000, "hbm_bytes": 16e9}
    with pytest.raises(InvalidInput, match="NAME=VALUE"):
        parse_limits(["luts"])
    with pytest.raises(InvalidInput, match="twice"):
        parse_limits(["luts=1", "luts=2"])


def test_room_is_that_of_the_tightest_limit() -> None:
    values = {"luts": 50.0, "clock_mhz": 200.0, "dsps": 0.0}
    assert judged.room(values, {"luts": 100, "clock_mhz": 150}) == pytest.approx(4 / 3)
    assert judged.within(values, {"luts": 50, "clock_mhz": 200, "dsps": 0})
    assert not judged.within(values, {"clock_mhz": 201})
    assert not judged.within(values, {"cycles": 10})
    assert judged.room(values, {"luts": 25}) == 0.5
    assert judged.describe(values, {"luts": 40_000}) == "luts 50 of at most 40,000"


TASK = """
import torch
from torch import nn
import hasten


def task():
    torch.manual_seed(0)
    centres = torch.randn(3, 8) * 3
    y = torch.arange(900) % 3
    x = centres[y] + torch.randn(900, 8)
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    batches = [(x[i : i + 100], y[i : i + 100]) for i in range(0, 900, 100)]
    return hasten.Task(model=model.eval(), example=(x[:4],), holdout=batches)
"""


def cli(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, object]]:
    (tmp_path / "task.py").write_text(TASK)
    command = ["run", str(tmp_path / "task.py"), "--no-training", "--json", "--out", str(tmp_path / "run"), *arguments]
    done = CliRunner().invoke(app, command)
    assert done.exit_code in (0, 1), done.output
    return done.exit_code, json.loads(done.stdout)


@pytest.mark.stack("fpga")
def test_the_command_searches_under_a_limit_on_luts(tmp_path: Path) -> None:
    code, found = cli(tmp_path, "--targets", "fpga", "--limit", "luts=20000", "--limit", "cycles=100")
    assert code == 0
    artifact = hasten.Artifact(tmp_path / "run" / "best.hasten")
    assert artifact.certificate is not None
    assert 0 < artifact.certificate["judged"]["luts"] <= 20_000
    assert artifact.certificate["evidence"] == "simulated"
    assert "simulated, not timed" in str(found["explanation"])
    answers = artifact.load()(np.zeros((4, 8), np.float32))
    assert answers[0].shape == (4, 3)


@pytest.mark.stack("fpga", "tpu")
def test_two_judged_targets_each_ship_their_best(tmp_path: Path) -> None:
    limits = ("--limit", "luts=20000", "--limit", "hbm_bytes=1GB")
    code, found = cli(tmp_path, "--targets", "tpu,fpga", *limits)
    assert code == 0
    best = found["best_of"]
    assert isinstance(best, dict)
    assert set(best) == {"fpga", "tpu"}
    stated = {name: hasten.Artifact(tmp_path / "run" / path).certificate for name, path in best.items()}
    assert stated["fpga"] is not None
    assert stated["tpu"] is not None
    assert (stated["fpga"]["limits"], stated["tpu"]["limits"]) == ({"luts": 20_000}, {"hbm_bytes": 1e9})
    assert (stated["fpga"]["evidence"], stated["tpu"]["evidence"]) == ("simulated", "estimated")


@pytest.mark.stack("fpga", "tpu")
def test_fewer_finalists_than_targets_are_refused(digits_task: hasten.Task, tmp_path: Path) -> None:
    budget = replace(QUICK, finalists=1)
    limits = {"luts": 1.0, "hbm_bytes": 1.0}
    with pytest.raises(InvalidInput, match="`finalists` must be at least"):
        hasten.run(digits_task, budget, targets="tpu,fpga", limits=limits, out=tmp_path / "run")
