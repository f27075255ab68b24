"""Load over HTTP from as little Python as possible: fixed requests, answers counted by their length."""

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Load:
    """What a generator saw: (status, latency in s) of every request, and the wall time."""

    seen: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0

    def latencies_ms(self, code: int = 200) -> np.ndarray:
        return np.array([1e3 * s for status, s in self.seen if status == code])

    @property
    def rate(self) -> float:
        """Good answers per second."""
        return len(self.latencies_ms()) / self.seconds


def message(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{key}: {value}" for key, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def v2_binary(x: np.ndarray, model: str = "net") -> bytes:
    """A request of the Open Inference Protocol with binary tensors both ways."""
    kind = {"float32": "FP32", "uint8": "UINT8"}[str(x.dtype)]
    tensor = {"name": "x", "datatype": kind, "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return message(f"/v2/models/{model}/infer", head + x.tobytes(), headers)


def v2_json(x: np.ndarray, model: str = "net") -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    return message(f"/v2/models/{model}/infer", body, {"Content-Type": "application/json"})


class Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time."""

    def __init__(self, data: bytes) -> None:
        self._data, self._buffer, self._missing = data, b"", 0
        self._answer: asyncio.Future[int] | None = None
        self._status = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionError("closed"))

    def ask(self) -> "asyncio.Future[int]":
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(self._data)
        return self._answer

    def data_received(self, data: bytes) -> None:
        if self._missing == 0:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            match = re.search(rb"(?i)content-length: *(\d+)", self._buffer[:end])
            assert match is not None, self._buffer[:end]
            self._status = int(self._buffer[9:12])
            self._missing = int(match[1]) - (len(self._buffer) - end - 4)
            self._buffer = b""
        else:
            self._missing -= len(data)
        if self._missing <= 0 and self._answer is not None:
            self._missing = 0
            self._answer.set_result(self._status)


async def connect(port: int, data: bytes) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(data), "127.0.0.1", port)
    return connection


async def closed_loop(port: int, data: bytes, clients: int, seconds: float) -> Load:
    load = Load()
    connections = [await connect(port, data) for _ in range(clients)]
    end = time.perf_counter() + seconds

    async def client(connection: Connection) -> None:
        while (start := time.perf_counter()) < end:
            load.seen.append((await connection.ask(), time.perf_counter() - start))

    start = time.perf_counter()
    await asyncio.gather(*map(client, connections))
    load.seconds = time.perf_counter() - start
    for connection in connections:
        connection.transport.close()
    return load


async def open_loop(port: int, data: bytes, rate: float, seconds: float, seed: int = 0) -> Load:
    """Poisson arrivals; latency counts from the scheduled time."""
    load, free = Load(), [await connect(port, data) for _ in range(64)]
    tasks: set[asyncio.Task[None]] = set()

    async def one(scheduled: float) -> None:
        connection = free.pop() if free else await connect(port, data)
        try:
            code = await asyncio.wait_for(connection.ask(), 10)
        except (TimeoutError, ConnectionError):
            connection.transport.abort()
            load.seen.append((0, time.perf_counter() - scheduled))
            return
        load.seen.append((code, time.perf_counter() - scheduled))
        free.append(connection)

    start = time.perf_counter()
    gaps = np.random.default_rng(seed).exponential(1 / rate, max(1, int(rate * seconds)))
    for offset in np.cumsum(gaps):
        wait = start + float(offset) - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.add(asyncio.create_task(one(start + float(offset))))
    load.seconds = time.perf_counter() - start
    await asyncio.gather(*tasks)
    for connection in free:
        connection.transport.close()
    return load


def run(coroutine: Any) -> Any:
    """On uvloop where it is installed: the generator shares the cores with the server."""
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(coroutine)
