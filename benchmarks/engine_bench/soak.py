"""The server under mixed load for minutes: memory, and every answer checked against its request."""

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

import hasten
from engine_bench.load import run, v2_binary
from engine_bench.serving import Served, hasten_server

_PATIENCE_S = 900.0
_LONGEST_STEP_S = 3.0


def soak(path: Path, minutes: float, clients: int = 8) -> dict[str, Any]:
    """Requests of changing sizes and values from several clients, with a reload every few seconds.

    A machine that stops this and the server for a while (SIGSTOP) stops the clock of the soak too.
    Memory growth is that between the first fifth and the last fifth of the time, by least squares per hour.
    """
    program = hasten.load(path, options={"threads": 1})
    generator = np.random.default_rng(0)
    shape = program.manifest["inputs"][0]["shape"][1:]
    requests = [
        generator.normal(size=(rows, *shape)).astype(np.float32) for rows in (1, 1, 2, 3, 5, 8) for _ in range(8)
    ]
    answers = [program(x)[0] for x in requests]
    with hasten_server(path, "--timeout-s", str(_PATIENCE_S)) as running:
        counts, memory = run(_drive(running, requests, answers, 60 * minutes, clients))
    settled = memory[len(memory) // 5 :]
    times, values = np.array(settled).T if settled else (np.zeros(1), np.zeros(1))
    growth = float(np.polyfit(times, values, 1)[0]) * 3600 if len(settled) > 1 else float("nan")
    return {
        "minutes": minutes,
        **counts,
        "memory at the start, bytes": memory[0][1],
        "memory at a fifth of the time, bytes": settled[0][1],
        "memory at the end, bytes": memory[-1][1],
        "trend after the first fifth, bytes per hour": growth,
    }


async def _drive(
    running: Served, requests: list[np.ndarray], answers: list[np.ndarray], seconds: float, clients: int
) -> tuple[dict[str, int], list[tuple[float, int]]]:
    counts = {"answers": 0, "lost": 0, "swapped or wrong": 0, "reloads": 0}
    memory: list[tuple[float, int]] = []
    ran_s = 0.0

    async def client(number: int) -> None:
        generator = np.random.default_rng(number)
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        while ran_s < seconds:
            which = int(generator.integers(len(requests)))
            writer.write(v2_binary(requests[which]))
            try:
                body, size = await asyncio.wait_for(_read(reader), _PATIENCE_S)
            except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
                counts["lost"] += 1
                reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
                continue
            found = np.frombuffer(body[size:], np.float32).reshape(answers[which].shape)
            good = np.allclose(found, answers[which], atol=1e-3, rtol=1e-3)
            counts["answers" if good else "swapped or wrong"] += 1
        writer.close()

    async def watch() -> None:
        nonlocal ran_s
        while ran_s < seconds:
            memory.append((ran_s, running.memory_bytes()))
            before = time.perf_counter()
            await asyncio.sleep(1)
            ran_s += min(_LONGEST_STEP_S, time.perf_counter() - before)

    async def reload() -> None:
        while ran_s + 5 < seconds:
            await asyncio.sleep(5)
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(b"POST /v2/repository/models/net/load HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            writer.close()
            counts["reloads"] += 1

    await asyncio.gather(*(client(i) for i in range(clients)), watch(), reload())
    return counts, memory


async def _read(reader: asyncio.StreamReader) -> tuple[bytes, int]:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head[9:12] == b"200", json.dumps(head.decode())
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    json_size = re.search(rb"(?i)inference-header-content-length: *(\d+)", head)
    assert length is not None
    assert json_size is not None
    return await reader.readexactly(int(length[1])), int(json_size[1])
