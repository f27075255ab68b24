"""Load over HTTP from as little Python as possible: fixed requests, answers counted by their length."""

import asyncio
import json
import re
import select
import socket
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Load:
    """What a generator saw: (status, latency in s) of every request; the wall time, and its own CPU time."""

    seen: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    cpu_s: float = 0.0

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


def closed_loop(port: int, data: bytes, clients: int, seconds: float) -> Load:
    """`clients` that each ask again as soon as they are answered: one thread, plain sockets, no event loop."""
    load, sockets = Load(), [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(clients)]
    readers = {each.fileno(): (each, _Answers()) for each in sockets}
    poll, now = select.poll(), time.perf_counter
    cpu, start = time.process_time(), now()
    asked = dict.fromkeys(readers, start)
    for each in sockets:
        poll.register(each, select.POLLIN)
        each.sendall(data)
    waiting = clients
    while waiting:
        for descriptor, _ in poll.poll():
            connection, answers = readers[descriptor]
            status = answers.feed(connection.recv(1 << 16))
            if status is None:
                continue
            at = now()
            load.seen.append((status, at - asked[descriptor]))
            if at < start + seconds:
                asked[descriptor] = at
                connection.sendall(data)
            else:
                waiting -= 1
    load.seconds, load.cpu_s = now() - start, time.process_time() - cpu
    for each in sockets:
        each.close()
    return load


class _Answers:
    """The answers of one connection, one at a time; `feed` returns the status when one is complete."""

    def __init__(self) -> None:
        self._data, self._head, self._size = b"", b"", 0

    def feed(self, data: bytes) -> int | None:
        if not data:
            raise ConnectionError("closed")
        self._data += data
        # Equal heads are the rule: they are searched again only when they change.
        if not self._head or not self._data.startswith(self._head):
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return None
            self._head = self._data[: end + 4]
            match = re.search(rb"(?i)content-length: *(\d+)", self._head)
            assert match is not None, self._head
            self._size = end + 4 + int(match[1])
        if len(self._data) < self._size:
            return None
        status = int(self._data[9:12])
        self._data = b""
        return status


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
