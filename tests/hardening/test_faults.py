"""A search where things break: the trial fails and says why, the rest goes on, and what is on disk is whole."""

import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hasten
from hasten.artifact import Artifact
from hasten.errors import InvalidInput
from hasten.search.folder import opened
from hasten.search.journal import Journal
from hasten.task import Budget

QUICK = Budget(max_drop=0.02, training=False)


@pytest.mark.usefixtures("faulty")
def test_a_search_survives_a_target_that_fails_in_every_way(digits_task: hasten.Task, tmp_path: Path) -> None:
    result = hasten.run(digits_task, QUICK, targets=["onnxruntime", "faulty"], out=tmp_path / "run")
    failures = {t.recipe.target.fault: t.failure for t in result.trials if hasattr(t.recipe.target, "fault")}
    assert failures.pop("refuses") == "faulty refuses this graph."
    assert failures.pop("crashes").startswith("faulty: the compiler's process ended with -11 (")
    assert failures.pop("crashes_loaded").startswith("faulty: its process ended with -11 (")
    assert failures.pop("raises_loaded") == "faulty: RuntimeError: the device is gone"
    assert not failures.pop("crashes_again")
    assert not failures
    assert result.best is not None
    assert result.best.certificate is not None
    assert result.best.certificate["passed"]
    assert not (tmp_path / "run" / "compiler").exists()


@pytest.mark.usefixtures("faulty")
def test_a_finalist_that_crashes_in_the_finals_is_left_out(digits_task: hasten.Task, tmp_path: Path) -> None:
    result = hasten.run(digits_task, QUICK, targets=["faulty"], out=tmp_path / "run")
    (finalist,) = [t for t in result.trials[1:] if not t.failure]
    (finals,) = Journal(tmp_path / "run" / "journal.jsonl").read("finals")
    assert list(finals["failed"]) == [str(finalist.number)]
    assert finals["failed"][str(finalist.number)].startswith("faulty: its process ended with -11 (")
    assert not result.finals
    assert result.best is None
    assert result.original_latency.ratio == 1.0
    assert hasten.run(digits_task, QUICK, targets=["faulty"], out=tmp_path / "run", resume=True).best is None


class Breaks:
    """Batches that end in an error on the second pass and later, half-way."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.passes = batches, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        for index, batch in enumerate(self.batches):
            if self.passes > 1 and index >= len(self.batches) // 2:
                raise OSError("the network drive is gone")
            yield batch


def _no_number(output: Any, target: Any) -> Tensor:
    loss: Tensor = torch.nn.functional.cross_entropy(output, target) * float("nan")
    return loss


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["loader", "loss"])
def test_training_that_cannot_work_leaves_the_rest(digits_task: hasten.Task, tmp_path: Path, fault: str) -> None:
    if fault == "loader":
        train = list(digits_task.train or [])
        broken = replace(digits_task, train=Breaks(train), calibration=[x for x, _ in train])
        told = "OSError: the network drive is gone"
    else:
        broken, told = (
            replace(digits_task, loss=_no_number),
            "Training must keep a finite loss, but in epoch 0 it was nan. Lower `lr` or set `clip_norm`.",
        )
    result = hasten.run(broken, Budget(max_drop=0.02), targets="onnxruntime", out=tmp_path / "run")
    decisions = Journal(tmp_path / "run" / "journal.jsonl").read("decision")
    failures = {t.failure for t in result.trials if t.failure}
    # Where it already shows when a training step is timed, the phase is left out; later it is the trial that fails.
    assert failures | {d["why"].removeprefix("it failed: ") for d in decisions if d["what"] == "training"} == {told}
    assert result.best is not None


def test_a_holdout_that_breaks_ends_the_run_with_its_own_error(digits_task: hasten.Task, tmp_path: Path) -> None:
    holdout = Breaks(list(digits_task.holdout))
    holdout.passes = 1
    with pytest.raises(OSError, match="the network drive is gone"):
        hasten.run(replace(digits_task, holdout=holdout), QUICK, targets="onnxruntime", out=tmp_path / "run")
    # What is left is the beginning of a run, which a resume takes up.
    with opened(tmp_path / "run", resume=True):
        assert Journal(tmp_path / "run" / "journal.jsonl").read() == []


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append("begin", {"task": "digits"})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            journal.append("trial", {"number": 1}, "a")
        assert path.read_bytes().endswith(b"}\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert journal.find("trial", "a") is None
    journal.append("trial", {"number": 1}, "a")  # there is room again
    assert [e["event"] for e in Journal(path).read()] == ["begin", "trial"]


def test_an_artifact_that_does_not_fit_is_not_seen(digits_artifact: Artifact, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            digits_artifact.save(tmp_path / "copy.hasten")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.glob("*.hasten"))
    digits_artifact.save(tmp_path / "copy.hasten")
    assert hasten.verify(tmp_path / "copy.hasten").deviation < 1e-5


def test_a_folder_that_cannot_be_written_is_refused(digits_task: hasten.Task, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="`out` must be a writable folder"):
        hasten.run(digits_task, QUICK, targets="onnxruntime", out=tmp_path / "file" / "run")


LOAD = """
import sys, numpy as np, hasten
program = hasten.load(sys.argv[1])
x = np.load(sys.argv[2])
print(program(x)[0].tobytes().hex())
"""


def test_ten_processes_load_one_artifact(artifact: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 4), np.float32))
    command = [sys.executable, "-c", LOAD, str(artifact), str(tmp_path / "x.npy")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(10)]
    ended = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0] * 10, ended[0][1]
    assert len({out for out, _ in ended}) == 1
    assert len(ended[0][0]) > 10


def test_an_artifact_that_is_deleted_while_it_runs_goes_on(artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.hasten"
    shutil.copytree(artifact, copy)
    program = hasten.load(copy)
    x = np.ones((2, 4), np.float32)
    before = program(x)[0]
    shutil.rmtree(copy)
    np.testing.assert_array_equal(program(x)[0], before)
