"""Compilation in a process of its own: the same result, and whatever happens there stays there."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hasten
from hasten.errors import Unsupported
from hasten.graph.capture import has_dynamic_batch, placeholders
from hasten.graph.shapes import trace_shapes
from hasten.graph.storage import load_graph, save_graph
from hasten.recipe import make_target
from hasten.search.compiler import CompileFailed, Compiler, usable_memory_bytes


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([x.flatten(1), y], 1)
        return both.softmax(1), both.reshape(x.shape[0], 2, -1)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compiler]:
    with Compiler(tmp_path_factory.mktemp("compiler"), limit_s=300) as compiler:
        yield compiler


@pytest.mark.parametrize("quantized", [False, True])
def test_the_result_is_that_of_this_process(
    compiler: Compiler, digits_task: hasten.Task, tmp_path: Path, quantized: bool
) -> None:
    graph = hasten.capture(digits_task.model, digits_task.example)
    if quantized:
        graph = hasten.Quantize().apply(graph, digits_task)
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    for name, weights in (("onnxruntime", ""), ("openvino", "model.bin"), ("eager", "tensors.safetensors")):
        target = make_target(name, {"threads": 1})
        target.compile(graph, digits_task, here)
        compiler.compile(target, graph, digits_task, there)
        assert not weights or (here / weights).read_bytes() == (there / weights).read_bytes()
        for rows in (1, 5):  # the batch stays dynamic
            x = digits_task.example[0][:rows].numpy()
            for a, b in zip(target.load(here)(x), target.load(there)(x), strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("dynamic", [True, False])
def test_a_graph_from_a_file_gets_the_shapes_of_a_captured_one(tmp_path: Path, rows: int, dynamic: bool) -> None:
    example = (torch.rand(rows, 2, 3), torch.rand(rows, 4))
    graph = hasten.capture(TwoInputs(), example)
    save_graph(graph, tmp_path)
    again = load_graph(tmp_path)
    trace_shapes(again, example, dynamic=dynamic)
    assert has_dynamic_batch(again) == dynamic
    for a, b in zip(graph.graph.nodes, again.graph.nodes, strict=True):
        if isinstance(a.meta.get("val"), Tensor):
            assert a.meta["val"].shape[1:] == b.meta["val"].shape[1:]
            assert a.meta["val"].dtype == b.meta["val"].dtype
    batches = [node.meta["val"].shape[0] for node in placeholders(again)]
    assert len(set(map(str, batches))) == 1
    assert isinstance(batches[0], torch.SymInt if dynamic else int)


@pytest.mark.usefixtures("faulty")
def test_faults_are_told_and_the_next_compilation_works(digits_task: hasten.Task, tmp_path: Path) -> None:
    graph = hasten.capture(digits_task.model, digits_task.example)
    out = tmp_path / "out"
    out.mkdir()
    with Compiler(tmp_path / "compiler", limit_s=300, memory_bytes=2 * 2**30) as compiler:
        compiler.compile(make_target("faulty"), graph, digits_task, out)
        process = compiler._child
        with pytest.raises(Unsupported, match="faulty refuses this graph"):
            compiler.compile(make_target("faulty", {"fault": "refuses"}), graph, digits_task, out)
        assert compiler._child is process
        for fault, told in (
            ("fills_memory", "MemoryError"),
            ("fills_disk", r"File too large|ended with -25"),
            ("crashes", r"faulty: the compiler's process ended with -11"),
        ):
            with pytest.raises(CompileFailed, match=told):
                compiler.compile(make_target("faulty", {"fault": fault}), graph, digits_task, out)
        compiler._limit_s = 1
        with pytest.raises(CompileFailed, match="faulty: compiling must end within 1 s"):
            compiler.compile(make_target("faulty", {"fault": "hangs"}), graph, digits_task, out)
        compiler._limit_s = 300
        compiler.compile(make_target("faulty"), graph, digits_task, out)
    assert not (tmp_path / "compiler").exists()


def test_the_memory_limit_is_that_of_the_machine_or_less() -> None:
    import psutil

    assert 2**20 < usable_memory_bytes() <= psutil.virtual_memory().total
