"""The short way of plain inference requests, byte by byte: what it must not change about HTTP."""

import asyncio
import contextlib
import gc
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hasten
from hasten.serve.models import Entry, ServeLimits
from hasten.serve.repository import Repository
from hasten.serve.waiting import TooLate, Waiting

PATH = "/v2/models/tiny/infer"


def request(x: np.ndarray, name: str, path: str = PATH, headers: str = "", id: str = "") -> bytes:
    tensor = {"name": name, "datatype": "FP32", "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"id": id, "inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body = head + x.tobytes()
    lines = f"POST {path} HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: {len(head)}\r\n{headers}"
    return f"{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Client:
    """A socket that reads one answer at a time."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self.data = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        while (end := self.data.find(b"\r\n\r\n")) < 0:
            self._more()
        status, *lines = self.data[:end].decode().split("\r\n")
        headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
        size = int(headers["content-length"])
        while len(self.data) < end + 4 + size:
            self._more()
        body, self.data = self.data[end + 4 : end + 4 + size], self.data[end + 4 + size :]
        return int(status.split()[1]), headers, body

    def values(self, columns: int) -> np.ndarray:
        code, headers, body = self.answer()
        assert code == 200, body
        return np.frombuffer(body[int(headers["inference-header-content-length"]) :], np.float32).reshape(-1, columns)

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("closed")
        self.data += data


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    made = Client(server.address)
    with contextlib.closing(made.socket):
        yield made


@pytest.fixture(scope="module")
def name(artifact: Path) -> str:
    return str(hasten.Artifact(artifact).manifest["inputs"][0]["name"])


@pytest.fixture(scope="module")
def program(artifact: Path) -> Any:
    return hasten.load(artifact)


def rows(seed: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def test_a_body_in_small_parts_and_many_requests_on_one_connection(client: Client, name: str, program: Any) -> None:
    for seed in range(3):
        data = request(rows(seed), name, id=f"{seed}")
        for at in range(0, len(data), 37):
            client.send(data[at : at + 37])
        assert np.allclose(client.values(3), program(rows(seed))[0], atol=1e-5)


def test_pipelined_requests_of_every_kind_are_answered_in_order(client: Client, name: str, program: Any) -> None:
    other = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
    plain, bad = request(rows(1, 200), name), request(rows(2), name, path="/v2/models/nothing/infer")
    client.send(plain + other + request(rows(3), name) + bad + plain)
    assert np.allclose(client.values(3), program(rows(1, 200))[0], atol=1e-5)
    assert json.loads(client.answer()[2])["name"] == "hasten"
    assert np.allclose(client.values(3), program(rows(3))[0], atol=1e-5)
    assert client.answer()[0] == 404
    assert np.allclose(client.values(3), program(rows(1, 200))[0], atol=1e-5)


def test_a_request_that_is_not_plain_goes_the_ordinary_way(client: Client, name: str, program: Any) -> None:
    x = rows(5)
    data = request(x, name, headers="Expect: 100-continue\r\n")
    head, _, body = data.partition(b"\r\n\r\n")
    client.send(head + b"\r\n\r\n")
    assert client.socket.recv(100).startswith(b"HTTP/1.1 100 Continue")
    client.send(body)
    assert np.allclose(client.values(3), program(x)[0], atol=1e-5)
    client.send(request(x, name, headers="Content-Encoding: gzip\r\n"))
    assert client.answer()[0] == 415
    client.send(request(x, name, headers="Connection: close\r\n"))
    assert np.allclose(client.values(3), program(x)[0], atol=1e-5)
    assert client.socket.recv(1) == b""


@pytest.mark.parametrize("json_size", ["-1", "x", "100000", "0"])
def test_errors_keep_the_connection(client: Client, name: str, program: Any, json_size: str) -> None:
    data = request(rows(6), name)
    before, _, after = data.partition(b"Inference-Header-Content-Length: ")
    client.send(before + f"Inference-Header-Content-Length: {json_size}".encode() + after[after.index(b"\r\n") :])
    code, headers, body = client.answer()
    assert code == 400
    assert headers["content-type"] == "application/json"
    assert "Inference-Header-Content-Length" in json.loads(body)["error"]
    client.send(data)
    assert np.allclose(client.values(3), program(rows(6))[0], atol=1e-5)


def test_clients_that_leave_before_their_answer_hurt_nobody(server: Any, name: str, program: Any) -> None:
    for seed in range(20):
        leaving = Client(server.address)
        data = request(rows(seed, 50), name)
        leaving.send(data if seed % 2 else data[:-8])
        leaving.socket.close()
    staying = Client(server.address)
    with contextlib.closing(staying.socket):
        staying.send(request(rows(7), name))
        assert np.allclose(staying.values(3), program(rows(7))[0], atol=1e-5)


def test_a_server_that_ends_answers_what_it_took_and_closes(
    start: Callable[..., Any], artifact: Path, name: str
) -> None:
    with start(str(artifact)) as server:
        client = Client(server.address)
        with contextlib.closing(client.socket):
            client.send(request(rows(1), name))
            assert client.answer()[0] == 200
            data = request(rows(2), name)
            client.send(data[:-4])
            time.sleep(0.2)
            server.process.terminate()
            time.sleep(0.2)
            client.send(data[-4:])
            code, headers, _ = client.answer()
            assert (code, headers["connection"]) == (200, "close")
        assert server.process.wait(20) == 0


def test_answered_requests_leave_no_cycles_to_the_garbage_collector(artifact: Path, name: str) -> None:
    async def ask(model: Any, count: int) -> None:
        for seed in range(count):
            await model.infer({name: rows(seed)})

    repository = Repository([Entry("tiny", "1", (artifact,))], ServeLimits(), {"profile_s": 0})
    repository.open()
    try:
        asyncio.run(ask(repository.get("tiny"), 3))
        repository.get("tiny")._waiting = None  # it belongs to the loop that has ended
        gc.collect()
        gc.disable()
        asyncio.run(ask(repository.get("tiny"), 200))
        assert gc.collect() < 200
    finally:
        gc.enable()
        repository.close()


def test_calls_are_told_once_dropped_or_ended_in_time() -> None:
    told: list[tuple[str, Any]] = []

    async def run() -> None:
        waiting = Waiting(asyncio.get_running_loop(), 0.05)

        def teller(name: str) -> Any:
            return lambda outputs, error: told.append((name, outputs if error is None else type(error)))

        first, dropped, late = (
            waiting.open(teller("first")),
            waiting.open(teller("dropped")),
            waiting.open(teller("late")),
        )
        answer = (np.zeros(1),)
        await asyncio.to_thread(waiting.answered, first, answer, None)
        assert waiting.drop(dropped)
        waiting.answered(dropped, answer, None)
        await asyncio.sleep(0.3)
        waiting.answered(late, answer, None)
        await asyncio.sleep(0)
        assert not waiting.drop(late)

    asyncio.run(run())
    assert [name for name, _ in told] == ["first", "late"]
    assert told[1][1] is TooLate


def test_one_teller_that_raises_does_not_silence_the_others(caplog: pytest.LogCaptureFixture) -> None:
    told: list[int] = []

    async def run() -> None:
        waiting = Waiting(asyncio.get_running_loop(), 10)

        def broken(outputs: Any, error: Any) -> None:
            raise RuntimeError("broken")

        for call in (waiting.open(broken), waiting.open(lambda *_: told.append(1))):
            waiting.answered(call, (), None)
        await asyncio.sleep(0.01)

    asyncio.run(run())
    assert told == [1]
    assert "could not be handed over" in caplog.text
