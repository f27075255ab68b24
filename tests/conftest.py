"""What the tests share: a small trained network on scikit-learn's digits, small artifacts, a cluster."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hasten
from hasten import environments
from hasten.artifact import Artifact
from hasten.unreported import import_openvino

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "tests" / "support")]
# Some tests import OpenVINO themselves; its reporter would then fork at each conversion, and leave the pipes open.
with contextlib.suppress(ImportError):
    import_openvino()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Two test processes share two cores, with their children: threads that wait for each other there spin for nothing.
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(autouse=True)
def _turns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches in the test's own process time in shorter turns: what a fast test says does not hang on a time."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr("hasten.measure.latency._TURN_SECONDS", 0.03)


@pytest.fixture(autouse=True)
def _stacks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that is marked `stack` runs where its stacks are installed; any other is the same on every machine."""
    mark = request.node.get_closest_marker("stack")
    if mark is None:
        monkeypatch.setenv("HASTEN_ENVS", os.devnull)
        return
    for name in mark.args:
        if need := environments.missing(name):
            pytest.skip(f"{name} needs: {need}")


@pytest.fixture(scope="session")
def digits_task() -> hasten.Task:
    """A convolutional network trained in seconds, with 900 holdout images."""
    import digits

    return digits.task()


@pytest.fixture(scope="session")
def digits_artifact(digits_task: hasten.Task, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The digits network compiled for ONNX Runtime; do not change it, copy it."""
    graph = hasten.capture(digits_task.model, digits_task.example)
    out = tmp_path_factory.mktemp("artifact") / "digits.hasten"
    made: Artifact = hasten.compile(graph, digits_task, "onnxruntime", out)
    return made


Make = Callable[..., Path]


@pytest.fixture(scope="session")
def make_artifact(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Writes an artifact of one input from ONNX nodes that turn `x` into `y`."""

    def make(name: str, nodes: Sequence[Any], weights: dict[str, np.ndarray], example: np.ndarray) -> Path:
        import onnx
        import onnxruntime as ort
        from onnx import TensorProto, helper, numpy_helper

        from hasten import artifact
        from hasten.recipe import Recipe, make_target

        shape = ["batch", *example.shape[1:]]
        graph = helper.make_graph(
            list(nodes),
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, key) for key, value in weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        compiled = tmp_path_factory.mktemp("compiled")
        onnx.save(model, compiled / "model.onnx")
        outputs = ort.InferenceSession(compiled / "model.onnx").run(None, {"x": example})
        spec = {"name": "x", "dtype": str(example.dtype), "shape": [None, *example.shape[1:]]}
        out = tmp_path_factory.mktemp("artifacts") / f"{name}.hasten"
        artifact.write(out, compiled, Recipe((), make_target("onnxruntime")), [spec], [example], outputs)
        return out

    return make


@pytest.fixture(scope="session")
def artifact(make_artifact: Make) -> Path:
    """A [rows, 4] -> [rows, 3] network in ONNX Runtime."""
    from onnx import helper

    generator = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    weights = {
        "w1": generator.normal(size=(4, 8)).astype(np.float32),
        "w2": generator.normal(size=(8, 3)).astype(np.float32),
    }
    return make_artifact("tiny", nodes, weights, generator.normal(size=(4, 4)).astype(np.float32))


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Three nodes of one core each, the first of them the head; ended afterwards."""
    ray = pytest.importorskip("ray", reason="the `ray` extra is not installed")
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 * 2**20})
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
