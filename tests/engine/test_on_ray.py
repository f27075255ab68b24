"""Batch jobs and serving on Ray: several nodes on this machine, one of them killed."""

import json
import threading
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hasten
from hasten.errors import InvalidInput

# Ray and its dependencies warn about themselves.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def read(output: Path) -> tuple[list[str], np.ndarray]:
    parts = [np.load(path) for path in sorted(output.glob("part-*.npz"))]
    return [key for part in parts for key in part["key"].tolist()], np.concatenate([p["output_0"] for p in parts])


def test_one_of_three_nodes_killed_every_row_exactly_once(cluster: Any, artifact: Path, tmp_path: Path) -> None:
    from hasten.engine.on_ray import run_batch_on_ray

    x = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    killed = threading.Event()
    victim = next(iter(cluster.worker_nodes))

    def progress(done: int, total: int | None) -> None:
        assert total == 3000
        if done >= 300 and not killed.is_set():
            killed.set()
            cluster.remove_node(victim, allow_graceful=False)

    report = run_batch_on_ray(
        artifact, tmp_path / "x.npy", tmp_path / "out", shard_rows=75, actors=3, progress=progress
    )
    assert killed.is_set()
    assert report.shards == 40
    keys, answers = read(tmp_path / "out")
    assert keys == [str(i) for i in range(3000)]
    np.testing.assert_allclose(answers, hasten.load(artifact)(x)[0], atol=1e-5)
    assert not list((tmp_path / "out").glob("*.unfinished"))
    again = run_batch_on_ray(artifact, tmp_path / "x.npy", tmp_path / "out", shard_rows=75)
    assert (again.rows, again.skipped) == (0, 40)


def test_the_same_application_on_ray_serve(artifact: Path) -> None:
    pytest.importorskip("ray", reason="the `ray` extra is not installed")
    from hasten.serve.models import Entry
    from hasten.serve.on_ray import deploy, undeploy
    from hasten.serve.run import ServeOptions

    options = ServeOptions(port=18123, api_key="secret", engine={"replicas": 1, "profile_s": 0.1})
    address = deploy([Entry("tiny", "1", (artifact,))], options, address="local")
    try:
        x = np.ones((2, 4), np.float32)
        tensor = {"name": "x", "datatype": "FP32", "shape": [2, 4], "data": x.ravel().tolist()}
        answer = ask(f"{address}/v2/models/tiny/infer", {"inputs": [tensor]})
        found = np.array(answer["outputs"][0]["data"]).reshape(2, 3)
        np.testing.assert_allclose(found, hasten.load(artifact)(x)[0], atol=1e-5)
        assert ask(f"{address}/v2/models/tiny")["inputs"][0]["shape"] == [-1, 4]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{address}/v2")
    finally:
        undeploy()


def ask(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"X-API-Key": "secret", "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def test_what_ray_cannot_do_is_refused(artifact: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the `ray` extra is not installed")
    from hasten.engine.on_ray import run_batch_on_ray
    from hasten.serve.on_ray import deploy
    from hasten.serve.run import ServeOptions

    with pytest.raises(InvalidInput, match="no shared memory"):
        deploy([], ServeOptions(shared_memory=True))
    with pytest.raises(InvalidInput, match="`actors` must be at least 0"):
        run_batch_on_ray(artifact, tmp_path, tmp_path / "out", actors=-1)
