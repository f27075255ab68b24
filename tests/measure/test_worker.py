"""A program in its own process: right answers, whole batches, and failures that are told instead of hung."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import hasten
from hasten.measure.arrays import ArrayFile, ArrayWriter
from hasten.measure.latency import _LEAST_CALLS, _expected_s, best_throughput, bootstrap_interval, compare
from hasten.measure.worker import ProgramFailed, Worker
from hasten.recipe import make_target


def _written(path: Path, array: np.ndarray) -> ArrayFile:
    return ArrayWriter(path, array).close()


@pytest.fixture
def compiled(digits_task: hasten.Task, tmp_path: Path) -> Path:
    folder = tmp_path / "compiled"
    folder.mkdir()
    graph = hasten.capture(digits_task.model, digits_task.example)
    make_target("onnxruntime").compile(graph, digits_task, folder)
    return folder


def test_infer_answers_every_row_in_order(digits_task: hasten.Task, compiled: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((23, 1, 8, 8), dtype=np.float32)
    file = _written(tmp_path / "x.bin", images)
    rows = np.array([5, 0, 22, 7, 7])
    with Worker(make_target("onnxruntime"), compiled, tmp_path / "log.txt") as worker:
        (answer,) = worker.infer([file], rows, tmp_path / "out", batch=2)
        assert worker.peak_memory_bytes() > 2**20
    with torch.no_grad():
        want = digits_task.model(torch.from_numpy(images[rows])).numpy()
    np.testing.assert_allclose(answer.open(), want, atol=1e-4)


def test_answers_go_into_a_folder_that_is_made_or_was_there(compiled: Path, tmp_path: Path) -> None:
    file = _written(tmp_path / "x.bin", np.ones((5, 1, 8, 8), np.float32))
    folder = tmp_path / "new" / "folder"
    with Worker(make_target("onnxruntime"), compiled, tmp_path / "log.txt") as worker:
        for rows in (np.arange(5), np.arange(2)):
            (answer,) = worker.infer([file], rows, folder, batch=2)
            assert answer.open().shape == (len(rows), 10)


def test_compare_and_throughput_measure_every_program(compiled: Path, tmp_path: Path) -> None:
    file = _written(tmp_path / "x.bin", np.zeros((4, 1, 8, 8), np.float32))
    target = make_target("onnxruntime")
    with Worker(target, compiled, tmp_path / "a.txt") as a, Worker(target, compiled, tmp_path / "b.txt") as b:
        found = compare({"a": a, "b": b}, "a", [file], turns=3)
        rates = best_throughput({"a": a, "b": b}, "a", [file], largest=4)
    assert found["a"].ratio == 1.0
    assert found["b"].ratio_low <= found["b"].ratio <= found["b"].ratio_high
    assert found["b"].turns == 3
    assert 0 < found["b"].median_ms <= found["b"].p90_ms <= found["b"].p99_ms
    assert rates["a"].ratio == 1.0
    assert rates["b"].samples_per_s > 0
    assert rates["b"].batch in (1, 2, 4)


@pytest.mark.parametrize(("limit_s", "batches"), [(0.0, [1]), (9.0, [1, 2]), (float("inf"), [1, 2, 4])])
def test_throughput_begins_no_batch_that_would_end_beyond_its_limit(limit_s: float, batches: list[int]) -> None:
    asked: list[int] = []

    def time_calls(inputs: Any, batch: int, seconds: float, least: int) -> np.ndarray:
        asked.append(batch)
        return np.full(least, {1: 1.0, 2: 1.5, 4: 2.5}[batch])  # seconds

    worker: Any = SimpleNamespace(time_calls=time_calls)
    found = best_throughput({"a": worker}, "a", [], largest=4, limit_s=limit_s)
    assert asked == batches
    assert found["a"].samples_per_s == pytest.approx(max(b / {1: 1.0, 2: 1.5, 4: 2.5}[b] for b in batches))


def test_a_program_that_cannot_load_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ProgramFailed, match="onnxruntime: "):
        Worker(make_target("onnxruntime"), tmp_path, tmp_path / "log.txt")


def test_a_process_that_dies_is_told(compiled: Path, tmp_path: Path) -> None:
    file = _written(tmp_path / "x.bin", np.zeros((4, 1, 8, 8), np.float32))
    with Worker(make_target("onnxruntime"), compiled, tmp_path / "log.txt") as worker:
        worker._process.kill()
        with pytest.raises(ProgramFailed, match="process ended"):
            worker.warm_up([file], 1)


def test_an_interrupted_call_leaves_no_answer_behind(
    compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _written(tmp_path / "x.bin", np.zeros((4, 1, 8, 8), np.float32))
    with Worker(make_target("onnxruntime"), compiled, tmp_path / "log.txt") as worker:
        read = worker._read_line
        interrupts = iter([True, False])

        def interrupted(limit_s: float) -> bytes | None:
            if next(interrupts, False):
                raise KeyboardInterrupt
            return read(limit_s)

        monkeypatch.setattr(worker, "_read_line", interrupted)
        with pytest.raises(KeyboardInterrupt):
            worker.time_calls([file], 1, 0.01)
        assert worker.peak_memory_bytes() > 2**20  # not the answer to the timing


def test_a_wrong_input_is_an_error_not_a_crash(compiled: Path, tmp_path: Path) -> None:
    file = _written(tmp_path / "x.bin", np.zeros((4, 3, 8, 8), np.float32))
    with Worker(make_target("onnxruntime"), compiled, tmp_path / "log.txt") as worker:
        with pytest.raises(ProgramFailed, match=r"onnxruntime: .*INVALID_ARGUMENT"):
            worker.warm_up([file], 1)
        good = _written(tmp_path / "y.bin", np.zeros((4, 1, 8, 8), np.float32))
        assert worker.warm_up([good], 1) > 0
        assert worker.warm_up([good], 1) == 0, "it is warm"
        assert worker.warm_up([good], 2) > 0, "other sizes set up anew"


def test_batches_that_disagree_are_refused(tmp_path: Path) -> None:
    writer = ArrayWriter(tmp_path / "x.bin", np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="every batch must hold rows of shape"):
        writer.append(np.zeros((2, 4), np.float32))
    writer.append(np.ones((1, 3), np.float32))
    file = writer.close()
    assert file.shape == (3, 3)
    assert ArrayFile.from_json(file.to_json()) == file
    assert file.open()[2].tolist() == [1, 1, 1]


def test_the_bootstrap_interval_holds_the_median() -> None:
    low, high = bootstrap_interval(np.array([1.0, 2.0, 3.0, 4.0, 100.0]))
    assert low <= 3.0 <= high


def test_a_larger_batch_is_expected_to_be_as_fast_as_the_last() -> None:
    """Samples per second by batch; one call to warm up and five that are timed."""
    assert _expected_s({1: 10.0, 2: 100.0}, 4) == pytest.approx((1 + _LEAST_CALLS) * 4 / 100)


def test_what_a_runtime_prints_is_no_answer() -> None:
    """Also what it writes past Python, to the file descriptor itself."""
    child = """
import os
from hasten.measure import worker

class Noisy:
    def load(self, folder):
        os.write(1, b"loading...\\n")
        return print

worker.make_target = lambda name, options: Noisy()
worker._serve()
"""
    asked = json.dumps({"command": "load", "name": "x", "options": {}, "folder": "."}) + "\n"
    done = subprocess.run([sys.executable, "-c", child], input=asked, capture_output=True, text=True, check=True)
    assert done.stdout == "{}\n"
    assert "loading..." in done.stderr
