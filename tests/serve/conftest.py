"""A real server in a process of its own, on loopback, on free ports."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Server:
    process: "subprocess.Popen[str]"
    http: str
    grpc: str

    @property
    def address(self) -> str:
        return self.http.partition("://")[2]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@contextlib.contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[Server]:
    for library in ("uvicorn", "grpc", "prometheus_client"):
        pytest.importorskip(library, reason="the `serve` extra is not installed")
    command = [sys.executable, "-m", "hasten.cli", "serve", *arguments, "--port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1", **environment}
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.fullmatch(r"serving on (\S+) and gRPC on (\S+)\n", line)
        assert match, f"the server did not start: {line!r}, exit code {process.poll()}"
        yield Server(process, match[1], match[2])
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[Server]:
    with serving(str(artifact), f"other:3={artifact}+{artifact}", "--shared-memory", "--body-mb", "1") as running:
        yield running


@pytest.fixture
def start() -> Callable[..., contextlib.AbstractContextManager[Server]]:
    return serving
