"""One graph in two parts: the same answers wherever it is cut, pipelined, kept where it pays, refused where not."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import hasten
from hasten.artifact import Artifact
from hasten.engine.chain import Chain
from hasten.engine.runner import Runner, open_artifact
from hasten.errors import InvalidInput, Unsupported
from hasten.graph.capture import as_tuple, capture, capture_as_is
from hasten.graph.cut import Cut, cuts, split_at, spread
from hasten.graph.storage import load_graph
from hasten.task import Task


class Residual(nn.Module):
    """Convolutions with a skip connection, then a head that reads the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.pool = nn.MaxPool2d(4)
        self.head = nn.Linear(6 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = torch.relu(self.norm(self.second(y)) + y)
        y = self.pool(y)
        z: Tensor = self.head(y.view(y.shape[0], -1))
        return z


def made() -> Task:
    torch.manual_seed(0)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Task(Residual().eval(), (x,), [(x, torch.zeros(3, dtype=torch.int64))])


@pytest.mark.parametrize("quantized", [False, True])
def test_every_cut_gives_the_same_answers(quantized: bool) -> None:
    task = made()
    graph = capture(task.model, task.example)
    if quantized:
        graph = hasten.Quantize(rounding="nearest", bias_correction=False).apply(graph, task)
        graph = capture_as_is(graph, task.example)
    found = cuts(graph)
    assert len(found) >= 5
    assert [cut.share for cut in found] == sorted(cut.share for cut in found)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = graph(x)
        for cut in found[:: 7 if quantized else 2]:
            first, second, passed = split_at(graph, cut, task.example)
            assert sum(t[0].numel() * t.element_size() for t in passed) == cut.crossing_bytes
            torch.testing.assert_close(second(*as_tuple(first(x))), expected)


def test_the_skip_connection_crosses_too_and_narrow_cuts_are_preferred() -> None:
    task = made()
    graph = capture(task.model, task.example)
    found = cuts(graph)
    assert any(len(cut.crossing) == 2 for cut in found)
    assert len(spread(found, 3)) == 3
    for part, cut in enumerate(spread(found, 3)):
        within = [x for x in found if part / 3 < x.share <= (part + 1) / 3]
        assert cut in within
        assert cut.crossing_bytes == min(x.crossing_bytes for x in within)


def test_a_cut_between_two_stretches_is_in_one_of_them_and_none_is_at_the_end() -> None:
    half, end = Cut("a", ("a",), 4, 0.5), Cut("b", ("b",), 1, 1.0)
    assert spread([half, end], 2) == [half]
    assert spread([Cut("c", ("c",), 1, 0.0)], 1) == []


class Simulated:
    """Opens artifacts as devices that sleep for every operator: `rates` has the seconds per target and operator."""

    def __init__(self, rates: dict[str, dict[str, float]]) -> None:
        self._rates = rates

    def __call__(self, path: Path) -> Runner:
        runner = open_artifact(path, replicas=1, threads=1)
        target = Artifact(path).manifest["target"]["name"]
        model = onnx.load(path / "model.onnx") if target == "onnxruntime" else None
        names = (
            [n.op_type for n in model.graph.node]
            if model is not None
            else [str(n.target).split(".")[1] for n in load_graph(path).graph.nodes if "aten" in str(n.target)]
        )
        kinds = [("convolution" if n.startswith(("Conv", "conv")) else "head") for n in names]
        kinds = [k for k, n in zip(kinds, names, strict=True) if n in ("Conv", "Gemm", "MatMul", "conv2d", "linear")]
        seconds = sum(self._rates[target][kind] for kind in kinds)
        program = runner.lanes[0]

        def slow(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
            time.sleep(seconds)
            return program(*inputs)

        return replace(runner, lanes=(slow,), name=f"simulated {runner.name}")


def test_a_split_that_pays_is_written_and_answers(tmp_path: Path) -> None:
    """Two simulated devices, each slow at what the other is fast at."""
    task = made()
    graph = capture(task.model, task.example)
    beds = Simulated(
        {"onnxruntime": {"convolution": 0.005, "head": 0.06}, "eager": {"convolution": 0.03, "head": 0.01}}
    )
    made_split = hasten.split(
        graph, task, ("eager", "onnxruntime"), tmp_path / "split", batch=3, tries=1, turns=2, turn_s=0.15, opener=beds
    )
    assert made_split.targets == ("onnxruntime", "eager")
    assert made_split.gain > 1.5
    assert sorted(x.name for x in (tmp_path / "split").iterdir()) == ["first.hasten", "second.hasten"]
    x = torch.randn(7, 1, 8, 8)
    with torch.no_grad():
        expected = task.model(x).numpy()
    with made_split.engine(largest=4, profile_s=0.05) as engine:
        np.testing.assert_allclose(engine(x.numpy())[0], expected, atol=1e-5)
        streamed = [y[0] for y in engine.map(list(x.numpy()[:, None]))]
    np.testing.assert_allclose(np.concatenate(streamed), expected, atol=1e-5)


def test_a_split_that_does_not_pay_is_refused_with_what_was_measured(tmp_path: Path) -> None:
    task = made()
    graph = capture(task.model, task.example)
    with pytest.raises(Unsupported, match=r"must gain at least 3x.*then eager.*Rows per second: split .*eager "):
        hasten.split(
            graph, task, ("eager", "eager"), tmp_path / "split", batch=3, tries=1, turns=2, turn_s=0.05, worth=3
        )
    assert not (tmp_path / "split").exists()


def test_rules(tmp_path: Path) -> None:
    task = made()
    graph = capture(task.model, task.example)
    with pytest.raises(InvalidInput, match="`out` must not exist yet"):
        hasten.split(graph, task, out=tmp_path)
    with pytest.raises(InvalidInput, match="`targets` must be two names"):
        hasten.split(graph, task, ("eager",), out=tmp_path / "x")
    single = Task(nn.Linear(3, 2), (torch.randn(2, 3),), [torch.randn(2, 3)])
    with pytest.raises(Unsupported, match="cannot be cut"):
        hasten.split(capture(single.model, single.example), single, out=tmp_path / "x")


def stage(name: str, run: Callable[[np.ndarray], np.ndarray], width: int, answers: int) -> Runner:
    return Runner(
        name,
        (lambda x: (run(x),),),
        ({"name": "x", "dtype": "float32", "shape": [None, width]},),
        ({"dtype": "float32", "shape": [None, answers]},),
    )


def test_stages_of_a_chain_overlap_keep_order_and_must_fit() -> None:
    running, most = set(), 0

    def step(name: str) -> Callable[[np.ndarray], np.ndarray]:
        def run(x: np.ndarray) -> np.ndarray:
            nonlocal most
            running.add(name)
            most = max(most, len(running))
            time.sleep(0.005)
            running.discard(name)
            return x + 1

        return run

    items = [np.full((1, 2), i, np.float32) for i in range(20)]
    with Chain(stage("a", step("a"), 2, 2), stage("b", step("b"), 2, 2), largest=1, profile_s=0) as chain:
        found = [y[0][0, 0] for y in chain.map(items)]
        assert chain.submit(items[3]).result()[0][0, 0] == 5
        assert [s["requests"] for s in chain.statistics()] == [21, 21]
    assert found == [i + 2 for i in range(20)]
    assert most == 2
    with pytest.raises(InvalidInput, match="must take what the one before answers"):
        Chain(stage("a", step("a"), 2, 3), stage("b", step("b"), 2, 2), profile_s=0)
    with pytest.raises(InvalidInput, match="at least two stages"):
        Chain(stage("a", step("a"), 2, 2))


def test_an_error_of_any_stage_reaches_the_caller() -> None:
    def broken(x: np.ndarray) -> np.ndarray:
        raise ValueError("broken")

    def fine(x: np.ndarray) -> np.ndarray:
        return x

    for stages in ((broken, fine), (fine, broken)):
        with Chain(*(stage(f.__name__, f, 2, 2) for f in stages), profile_s=0) as chain:
            future = chain.submit(np.zeros((1, 2), np.float32))
            with pytest.raises(ValueError, match="broken"):
                future.result(10)
