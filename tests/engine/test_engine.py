"""The live engine: threads and processes, each answer checked against its own request."""

import dataclasses
import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hasten
from hasten.engine.engine import Engine
from hasten.engine.process import ProcessDied, ProcessProgram, SharedMemory
from hasten.engine.runner import Runner, open_artifact
from hasten.engine.work import DeviceFailed, Limits
from hasten.errors import HastenError, InvalidInput

Program = Callable[..., tuple[np.ndarray, ...]]


def double(x: np.ndarray) -> tuple[np.ndarray, ...]:
    return (x * 2, x.sum(axis=1))


def runner(program: Program = double, lanes: int = 1, fixed: int | None = None, name: str = "test") -> Runner:
    return Runner(name, (program,) * lanes, fixed=fixed, example=(np.ones((1, 2), np.float32),))


def rows(count: int, start: int = 0) -> np.ndarray:
    return np.arange(start, start + 2 * count, dtype=np.float32).reshape(count, 2)


def right(x: np.ndarray, answer: tuple[np.ndarray, ...]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(double(x), answer, strict=True))


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=30),
    lanes=st.integers(1, 3),
    largest=st.integers(1, 12),
    fixed=st.sampled_from([None, 5]),
    second=st.booleans(),
)
def test_every_request_gets_its_own_answer(
    sizes: list[int], lanes: int, largest: int, fixed: int | None, second: bool
) -> None:
    devices = [runner(lanes=lanes), *([runner(fixed=fixed)] if second else [])]
    with Engine(*devices, largest=largest, profile_s=0) as engine:
        requests = [rows(size, 100 * i) for i, size in enumerate(sizes)]
        futures = [engine.submit(x) for x in requests]
        assert all(right(x, future.result(5)) for x, future in zip(requests, futures, strict=True))
        assert engine.statistics()["requests"] == len(sizes)


def test_map_keeps_order_and_looks_only_a_few_rounds_ahead() -> None:
    drawn = 0

    def source():  # type: ignore[no-untyped-def]
        nonlocal drawn
        for i in range(500):
            drawn += 1
            yield rows(3, 10 * i)

    with Engine(runner(lanes=2), largest=4, profile_s=0) as engine:
        for index, answer in enumerate(engine.map(source())):
            assert right(rows(3, 10 * index), answer)
            assert drawn * 3 <= (index + 1) * 3 + 3 * 8 + 3
        assert index == 499


def test_a_batch_that_raises_is_sent_again_one_request_at_a_time() -> None:
    def fussy(x: np.ndarray) -> tuple[np.ndarray, ...]:
        if (x < 0).any():
            raise ValueError("negative")
        time.sleep(0.01)
        return double(x)

    with Engine(runner(fussy), largest=8, profile_s=0) as engine:
        requests = [rows(1, i) for i in range(7)]
        requests[3] = -requests[3] - 1
        futures = [engine.submit(x) for x in requests]
        for index, (x, future) in enumerate(zip(requests, futures, strict=True)):
            if index == 3:
                with pytest.raises(ValueError, match="negative"):
                    future.result(5)
            else:
                assert right(x, future.result(5))


def test_a_device_that_always_raises_costs_nothing_but_time() -> None:
    def broken(x: np.ndarray) -> tuple[np.ndarray, ...]:
        raise RuntimeError("broken device")

    with Engine(runner(broken, name="broken"), runner(), largest=4, profile_s=0) as engine:
        requests = [rows(2, i) for i in range(50)]
        futures = [engine.submit(x) for x in requests]
        assert all(right(x, future.result(5)) for x, future in zip(requests, futures, strict=True))


def test_a_stalled_device_loses_no_request() -> None:
    release = threading.Event()

    def stalls(x: np.ndarray) -> tuple[np.ndarray, ...]:
        release.wait(10)
        return double(x)

    limits = Limits(stall_s=0.2, stall_factor=3)
    with Engine(runner(stalls, name="stalls"), runner(), largest=4, profile_s=0, limits=limits) as engine:
        requests = [rows(2, i) for i in range(40)]
        futures = [engine.submit(x) for x in requests]
        assert all(right(x, future.result(5)) for x, future in zip(requests, futures, strict=True))
        assert engine.statistics()["devices"][0]["state"] == "stalled"
        assert engine.statistics()["resent"] >= 1
        release.set()


def test_rows_of_different_shapes_do_not_share_a_batch() -> None:
    with Engine(runner(), largest=8, profile_s=0) as engine:
        shapes = [(1, 2), (2, 5), (3, 2), (1, 5)] * 5
        requests = [np.full(shape, i, np.float32) for i, shape in enumerate(shapes)]
        futures = [engine.submit(x) for x in requests]
        assert all(right(x, future.result(5)) for x, future in zip(requests, futures, strict=True))
        assert engine.statistics()["resent"] == 0


def test_close_answers_what_is_queued_and_then_refuses() -> None:
    def slow(x: np.ndarray) -> tuple[np.ndarray, ...]:
        time.sleep(0.01)
        return double(x)

    engine = Engine(runner(slow), largest=1, profile_s=0)
    futures = [engine.submit(rows(1, i)) for i in range(10)]
    engine.close()
    assert all(future.done() and future.exception() is None for future in futures)
    with pytest.raises(HastenError, match="closed"):
        engine.submit(rows(1))


def test_an_artifact_in_threads_and_in_processes_answers_alike(artifact: Path) -> None:
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    expected = hasten.load(artifact)(x)[0]
    for processes in (False, True):
        with Engine(artifact, replicas=2, processes=processes, profile_s=0.05) as engine:
            assert np.allclose(engine(x)[0], expected, atol=1e-5)
            assert engine.inputs[0]["shape"] == [None, 4]


def test_shared_memory_grows_and_carries_errors(artifact: Path) -> None:
    program = ProcessProgram(artifact)
    try:
        for count in (1, 200_000, 3):
            x = np.random.default_rng(count).normal(size=(count, 4)).astype(np.float32)
            assert program(x)[0].shape == (count, 3)
        with pytest.raises(HastenError, match="dtype float32"):
            program(np.zeros((1, 4)))
        assert program(np.zeros((2, 4), np.float32))[0].shape == (2, 3)
        os.kill(program.pid, signal.SIGKILL)
        with pytest.raises(ProcessDied):
            program(np.zeros((1, 4), np.float32))
    finally:
        program.close()


def test_a_killed_process_loses_no_request(artifact: Path) -> None:
    expected = hasten.load(artifact)
    processes = open_artifact(artifact, replicas=1, processes=True)
    child = processes.lanes[0]
    assert isinstance(child, ProcessProgram)
    with Engine(processes, open_artifact(artifact, replicas=1), largest=4, profile_s=0) as engine:
        generator = np.random.default_rng(0)
        requests = [generator.normal(size=(3, 4)).astype(np.float32) for _ in range(300)]
        futures = []
        for index, x in enumerate(requests):
            futures.append(engine.submit(x))
            if index == 100:
                os.kill(child.pid, signal.SIGKILL)
        for x, future in zip(requests, futures, strict=True):
            assert np.allclose(future.result(10)[0], expected(x)[0], atol=1e-5)
        wait_until(lambda: engine.statistics()["respawned"] == 1, lambda: engine(requests[0]))
        assert engine.statistics()["devices"][0]["state"] == "ready"


def wait_until(condition: Callable[[], bool], step: Callable[[], Any] = lambda: None) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        step()
        time.sleep(0.01)


def test_the_only_device_is_started_again_and_loses_no_request(artifact: Path) -> None:
    runner = open_artifact(artifact, replicas=1, processes=True)
    child = runner.lanes[0]
    assert isinstance(child, ProcessProgram)
    x = np.ones((1, 4), np.float32)
    expected = hasten.load(artifact)(x)[0]
    with Engine(runner, profile_s=0) as engine:
        for time_of_death in range(2):  # the second time it is the child that was started again
            os.kill(child.pid, signal.SIGKILL)
            futures = [engine.submit(x) for _ in range(20)]
            assert all(np.allclose(future.result(30)[0], expected) for future in futures)
            assert engine.statistics()["respawned"] == time_of_death + 1
            child = runner.respawn.__self__[0]  # type: ignore[union-attr]


def test_a_process_that_stalls_is_ended_and_started_again(artifact: Path) -> None:
    runner = open_artifact(artifact, replicas=1, processes=True)
    child = runner.lanes[0]
    assert isinstance(child, ProcessProgram)
    x = np.ones((2, 4), np.float32)
    with Engine(runner, profile_s=0, limits=Limits(stall_s=0.2, give_up_s=2.0)) as engine:
        os.kill(child.pid, signal.SIGSTOP)
        assert np.allclose(engine.submit(x).result(30)[0], hasten.load(artifact)(x)[0], atol=1e-5)
        statistics = engine.statistics()
    assert (statistics["resent"], statistics["respawned"], statistics["failures"]) == (1, 1, 0)


def test_when_the_only_device_dies_for_good_requests_fail_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.engine.engine._REVIVAL_PAUSE_S", 0.001)
    attempts = []

    def dies(x: np.ndarray) -> tuple[np.ndarray, ...]:
        raise ProcessDied("gone")

    def respawn(number: int) -> Any:
        attempts.append(number)
        raise ProcessDied("still gone")

    for way in (None, respawn):
        with Engine(Runner("mortal", (dies,), respawn=way), profile_s=0) as engine:
            with pytest.raises((DeviceFailed, ProcessDied)):
                engine.submit(np.zeros((1, 4), np.float32)).result(5)
            assert engine.statistics()["devices"][0]["state"] == "dead"
    assert attempts == [0] * 5


def test_inputs_are_checked_at_the_door(artifact: Path) -> None:
    with Engine(artifact, replicas=1, profile_s=0) as engine:
        with pytest.raises(InvalidInput, match="must have dtype float32, but got float64"):
            engine.submit(np.zeros((1, 4)))
        with pytest.raises(InvalidInput, match=r"must have shape \[None, 4\]"):
            engine.submit(np.zeros((1, 5), np.float32))
        with pytest.raises(InvalidInput, match="at least one row"):
            engine.submit(np.zeros((0, 4), np.float32))
        with pytest.raises(InvalidInput, match="1 inputs"):
            engine.submit(np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32))
    with pytest.raises(InvalidInput, match="at least one device"):
        Engine()


def test_loading_and_running_an_engine_imports_no_torch(artifact: Path) -> None:
    code = (
        "import sys, numpy as np, hasten\n"
        "with hasten.Engine(sys.argv[1], profile_s=0) as engine:\n"
        "    assert engine(np.zeros((2, 4), np.float32))[0].shape == (2, 3)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(artifact)], check=True, timeout=60)


def test_two_runtimes_serve_together(artifact: Path, tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino")
    from hasten import artifact as artifacts
    from hasten.recipe import Recipe, make_target

    (tmp_path / "compiled").mkdir()
    ov.save_model(
        ov.convert_model(artifact / "model.onnx"), tmp_path / "compiled" / "model.xml", compress_to_fp16=False
    )
    example, target = np.load(artifact / "check_input_0.npy"), make_target("openvino")
    specs = hasten.Artifact(artifact).manifest["inputs"]
    outputs = target.load(tmp_path / "compiled")(example)
    other = artifacts.write(
        tmp_path / "other.hasten", tmp_path / "compiled", Recipe((), target), specs, [example], outputs
    )
    expected = hasten.load(artifact)
    with Engine(artifact, other.path, replicas=2, threads=1, largest=4, profile_s=0.1) as engine:
        assert [x["lanes"] for x in engine.statistics()["devices"]] == [2, 2]
        x = np.random.default_rng(0).normal(size=(2000, 4)).astype(np.float32)
        answers = engine.map(x[i : i + 5] for i in range(0, 2000, 5))
        assert np.allclose(np.concatenate([y for (y,) in answers]), expected(x)[0], atol=1e-4)
        assert sum(device["rows"] for device in engine.statistics()["devices"]) == 2000
        assert all(device["rows"] > 0 for device in engine.statistics()["devices"])


def test_what_is_answered_or_cancelled_is_not_left_to_the_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        with Engine(runner(), profile_s=0) as engine:
            inputs = [rows(3, 10 * i) for i in range(20)]
            kept = [weakref.ref(x) for x in inputs]
            futures = [engine.submit(x) for x in inputs]
            for future in futures[10:]:
                future.cancel()
            for future in futures[:10]:
                future.result(5)
        inputs.clear()
        futures.clear()
        del future
        assert not any(x() is not None for x in kept)
    finally:
        gc.enable()


def test_devices_that_answer_differently_are_refused() -> None:
    one, other = (
        Runner(name, (double,), outputs=({"dtype": dtype, "shape": [None, 2]},))
        for name, dtype in (("one", "float32"), ("other", "int64"))
    )
    with pytest.raises(InvalidInput, match=r"same outputs, but one has .*float32.* and other has .*int64"):
        Engine(one, other, profile_s=0)


def test_what_was_opened_is_closed_when_an_engine_cannot_be_made(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Runner] = []
    closed: list[str] = []

    def open_one(path: object, **options: Any) -> Runner:
        found = open_artifact(artifact, **options)
        opened.append(dataclasses.replace(found, close=lambda: closed.append(found.name)))
        return opened[-1]

    monkeypatch.setattr("hasten.engine.engine.open_artifact", open_one)
    with pytest.raises(InvalidInput, match="must have the same inputs"):
        Engine(artifact, Runner("other", (double,), inputs=({"name": "x", "dtype": "int64", "shape": [None, 9]},)))
    assert closed == [opened[0].name]


def test_memory_that_is_not_there_is_an_error_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    memory = SharedMemory()
    try:
        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(HastenError, match=r"must have room for .* bytes, but: No space left"):
            memory.write([np.zeros(1 << 20)])
    finally:
        memory.path.unlink()
