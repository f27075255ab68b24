"""The fifth new user serves and operates an artifact, with what docs/serve.md tells: curl's requests and signals."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hasten


@pytest.fixture
def second(make_artifact: Callable[..., Path]) -> Path:
    """Another model of the same inputs, to change to."""
    from onnx import helper

    weights = {"w": np.ones((4, 3), np.float32)}
    return make_artifact(
        "second", [helper.make_node("MatMul", ["x", "w"], ["y"])], weights, np.ones((2, 4), np.float32)
    )


@pytest.fixture
def server(artifact: Path, tmp_path: Path) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    for library in ("uvicorn", "grpc", "prometheus_client"):
        pytest.importorskip(library, reason="the `serve` extra is not installed")
    (tmp_path / "live.hasten").symlink_to(artifact)
    command = [sys.executable, "-m", "hasten.cli", "serve", "mine=live.hasten", "--port", "0", "--grpc-port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as process:
        try:
            assert process.stdout is not None
            found = re.fullmatch(r"serving on (\S+) and gRPC on \S+\n", process.stdout.readline())
            assert found
            yield found[1], process
        finally:
            process.kill()


def ask(url: str, body: Any = None, method: str | None = None) -> tuple[int, bytes]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_serve_watch_change_and_stop(
    server: tuple[str, "subprocess.Popen[str]"], artifact: Path, second: Path, tmp_path: Path
) -> None:
    url, process = server
    assert ask(f"{url}/v2/health/live")[0] == ask(f"{url}/v2/health/ready")[0] == 200
    (described,) = json.loads(ask(f"{url}/v2/models/mine")[1])["inputs"]
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    tensor = {"name": described["name"], "datatype": described["datatype"], "shape": [2, 4], "data": x.ravel().tolist()}
    body = {"inputs": [tensor]}

    def answer() -> np.ndarray:
        code, text = ask(f"{url}/v2/models/mine/infer", body)
        assert code == 200, text
        return np.array(json.loads(text)["outputs"][0]["data"]).reshape(2, 3)

    np.testing.assert_allclose(answer(), hasten.load(artifact)(x)[0], atol=1e-5)
    assert b'hasten_requests_total{model="mine",outcome="success",version="1"} 1.0' in ask(f"{url}/metrics")[1]

    (tmp_path / "live.hasten").unlink()
    (tmp_path / "live.hasten").symlink_to(second)
    assert ask(f"{url}/v2/repository/models/mine/load", method="POST")[0] == 200
    np.testing.assert_allclose(answer(), hasten.load(second)(x)[0], atol=1e-5)
    (tmp_path / "live.hasten").unlink()
    code, text = ask(f"{url}/v2/repository/models/mine/load", method="POST")
    assert code == 400, text
    np.testing.assert_allclose(answer(), hasten.load(second)(x)[0], atol=1e-5)

    codes: list[int] = []
    asked = threading.Event()

    def client() -> None:
        try:
            while True:
                codes.append(ask(f"{url}/v2/models/mine/infer", body)[0])
                asked.set()
        except OSError:
            pass  # no new connections any more

    clients = [threading.Thread(target=client) for _ in range(3)]
    for thread in clients:
        thread.start()
    assert asked.wait(20)
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == 0
    for thread in clients:
        thread.join(20)
    assert set(codes) <= {200, 503}
