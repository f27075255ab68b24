"""Other servers over the same ONNX file, the same session options and two replicas, asked by the same generator.

Each in an environment of its own under HASTEN_BENCH_RIVALS: `fastapi`, `litserve`, `mlserver`, `pytriton` (NVIDIA
Triton with its Python backend, as packed in the nvidia-pytriton wheel), `ray`.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from engine_bench.load import closed_loop, message, v2_binary, v2_json
from engine_bench.serving import Served, against_runtime

# Triton's Python backend gives the process that started it one second for a handshake, which a busy machine misses.
# Its stub loads the system's libpython: the environment must be of that very Python (on Debian 12 made by
# /usr/bin/python3), or the stub's start fails on a standard library that is newer than itself.
_STARTS = 3

_SESSION = """
import os, sys, numpy as np, onnxruntime as ort
def session():
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
PORT, GRPC, METRICS = (int(x) for x in os.environ["PORTS"].split(","))
SHAPE = [int(x) for x in os.environ["SHAPE"].split(",")]
"""

_FASTAPI = """
import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool
app, model = FastAPI(), session()
@app.post("/infer")
async def infer(request: Request):
    x = np.frombuffer(await request.body(), np.float32).reshape(-1, *SHAPE)
    (y,) = await run_in_threadpool(model.run, None, {"x": x})
    return Response(y.tobytes(), media_type="application/octet-stream")
uvicorn.run(app, port=PORT, log_level="warning", access_log=False)
"""

_LITSERVE = """
import litserve
class Api(litserve.LitAPI):
    def setup(self, device):
        self.model = session()
    def decode_request(self, request):
        return np.array(request["x"], np.float32).reshape(1, *SHAPE)
    def batch(self, inputs):
        return np.concatenate(inputs)
    def predict(self, x):
        return self.model.run(None, {"x": x})[0]
    def unbatch(self, y):
        return list(y)
    def encode_response(self, y):
        return {"y": y.tolist()}
if __name__ == "__main__":
    litserve.LitServer(Api(max_batch_size=8, batch_timeout=0.001, api_path="/infer"), accelerator="cpu",
                       workers_per_device=2, timeout=30).run(port=PORT, log_level="warning", access_log=False)
"""

_MLSERVER = """
import asyncio
from mlserver import MLModel, MLServer
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelSettings, Settings
from mlserver.types import InferenceResponse
class Net(MLModel):
    async def load(self):
        self.model = session()
        return True
    async def predict(self, payload):
        x = NumpyCodec.decode_input(payload.inputs[0])
        (y,) = await asyncio.to_thread(self.model.run, None, {"x": x})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])
async def main():
    server = MLServer(Settings(http_port=PORT, grpc_port=GRPC, metrics_port=METRICS, parallel_workers=0,
                               debug=False, host="127.0.0.1"))
    await server.start([ModelSettings(name="net", implementation=Net)])
asyncio.run(main())
"""

_TRITON = """
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
def instance():
    model = session()
    @batch
    def infer(x):
        return [model.run(None, {"x": x})[0]]
    return infer
config = TritonConfig(http_port=PORT, grpc_port=GRPC, metrics_port=METRICS, http_address="127.0.0.1")
with Triton(config=config) as triton:
    triton.bind(model_name="net", infer_func=[instance(), instance()],
                inputs=[Tensor(name="x", dtype=np.float32, shape=tuple(SHAPE))],
                outputs=[Tensor(name="y", dtype=np.float32, shape=(-1,))],
                config=ModelConfig(max_batch_size=8, batcher=DynamicBatcher(max_queue_delay_microseconds=0)))
    triton.serve()
"""

_RAY = """
import ray, time
from ray import serve
from starlette.requests import Request
from starlette.responses import Response
@serve.deployment(num_replicas=2, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0.5})
class Net:
    def __init__(self):
        self.model = session()
    async def __call__(self, request: Request):
        x = np.frombuffer(await request.body(), np.float32).reshape(-1, *SHAPE)
        return Response(self.model.run(None, {"x": x})[0].tobytes(), media_type="application/octet-stream")
ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
serve.start(http_options={"host": "127.0.0.1", "port": PORT})
serve.run(Net.bind(), route_prefix="/infer")
while True:
    time.sleep(60)
"""


def _raw(x: np.ndarray) -> bytes:
    return message("/infer", x.tobytes(), {"Content-Type": "application/octet-stream"})


def _plain_json(x: np.ndarray) -> bytes:
    return message("/infer", json.dumps({"x": x.ravel().tolist()}).encode(), {"Content-Type": "application/json"})


@dataclass(frozen=True)
class Rival:
    """A script, how to ask it, and seconds it may take to start."""

    script: str
    ask: Callable[[np.ndarray], bytes]
    patience_s: float = 60.0


RIVALS = {
    "fastapi": Rival(_FASTAPI, _raw),
    "litserve": Rival(_LITSERVE, _plain_json),
    "mlserver": Rival(_MLSERVER, v2_json),
    "pytriton": Rival(_TRITON, v2_binary),
    "ray": Rival(_RAY, _raw, 120.0),
}


def python_of(name: str) -> Path | None:
    """The interpreter of a rival's environment; None without one."""
    path = Path(os.environ.get("HASTEN_BENCH_RIVALS", "rivals")) / name / "bin" / "python"
    return path if path.exists() else None


def measured(name: str, path: Path, repeats: int, seconds: float) -> dict[str, Any]:
    """The rows of `serving.against_runtime` for a rival, or why there are none."""
    python = python_of(name)
    if python is None:
        return {"missing": f"no environment `{name}` under HASTEN_BENCH_RIVALS"}
    x = np.load(path / "check_input_0.npy")[:1]
    failed = ""
    for _ in range(_STARTS):
        try:
            with _running(name, python, path, x) as served:
                found = against_runtime(served, RIVALS[name].ask(x), path, repeats, seconds)
                return found | {"ready, s": served.ready_s, "memory, bytes": served.memory_bytes()}
        except (RuntimeError, OSError, ConnectionError) as error:
            failed = str(error)
    return {"missing": f"it did not serve in {_STARTS} attempts: {failed}"[:300]}


def _reason(log: str) -> str:
    """What a log says went wrong first, or its end."""
    found = re.search(r"\w+Error: .+", log.replace("\\n", "\n"))
    return found[0] if found else " ".join(log.split())[-250:]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextlib.contextmanager
def _running(name: str, python: Path, path: Path, x: np.ndarray) -> Iterator[Served]:
    rival, port = RIVALS[name], free_port()
    environment = os.environ | {
        "MODEL": str((path / "model.onnx").resolve()),
        "PORTS": f"{port},{free_port()},{free_port()}",
        "SHAPE": ",".join(map(str, x.shape[1:])),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as scratch:
        script, log = Path(scratch) / f"serve_{name}.py", Path(scratch) / "log.txt"
        script.write_text(_SESSION + rival.script)
        start = time.perf_counter()
        with log.open("wb") as file:
            process = subprocess.Popen(
                [python, script], env=environment, cwd=scratch, stdout=file, stderr=file, stdin=subprocess.PIPE,
                start_new_session=True,
            )  # fmt: skip
        try:
            while not _answers(port, rival.ask(x)):
                if process.poll() is not None or time.perf_counter() - start > rival.patience_s:
                    raise RuntimeError(_reason(log.read_text(errors="replace")))
                time.sleep(0.02)
            yield Served(psutil.Process(process.pid), port, time.perf_counter() - start)
        finally:
            children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(8)
            process.kill()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()


def _answers(port: int, data: bytes) -> bool:
    try:
        load = closed_loop(port, data, 1, 0.0005)
    except (OSError, ConnectionError, AssertionError):
        return False
    return any(status == 200 for status, _ in load.seen)
