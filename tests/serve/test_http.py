"""The REST side against a real server: a plain HTTP client, and tritonclient unmodified."""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hasten

Start = Callable[..., contextlib.AbstractContextManager[Any]]


def call(
    address: str, method: str, path: str, body: bytes | dict[str, Any] | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(address, timeout=20)
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    connection.request(method, path, data, {key.replace("_", "-"): value for key, value in headers.items()})
    response = connection.getresponse()
    found = response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
    connection.close()
    return found


def tensor(x: np.ndarray, name: str) -> dict[str, Any]:
    return {"name": name, "datatype": "FP32", "shape": list(x.shape), "data": x.tolist()}


@pytest.fixture(scope="module")
def name(artifact: Path) -> str:
    return str(hasten.Artifact(artifact).manifest["inputs"][0]["name"])


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(artifact: Path, x: np.ndarray) -> np.ndarray:
    return hasten.load(artifact)(x)[0]


def test_json(server: Any, name: str, x: np.ndarray, expected: np.ndarray) -> None:
    body = {"id": "7", "inputs": [tensor(x, name)]}
    code, _, data = call(server.address, "POST", "/v2/models/tiny/infer", body)
    answer = json.loads(data)
    assert code == 200, data
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "tiny", "1")
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("output_0", "FP32", [5, 3])
    assert np.allclose(np.array(output["data"]).reshape(5, 3), expected, atol=1e-5)
    assert call(server.address, "POST", "/v2/models/other/versions/3/infer", body)[0] == 200


def test_tritonclient(server: Any, name: str, x: np.ndarray, expected: np.ndarray) -> None:
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(server.address)
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny")
        assert client.get_server_metadata()["name"] == "hasten"
        assert client.get_model_metadata("tiny")["inputs"] == [{"name": name, "datatype": "FP32", "shape": [-1, 4]}]
        assert client.get_model_config("tiny")["output"] == [
            {"name": "output_0", "data_type": "TYPE_FP32", "dims": [3]}
        ]
        assert {(m["name"], m["version"]) for m in client.get_model_repository_index()} == {
            ("tiny", "1"),
            ("other", "3"),
        }
        for binary in (True, False):
            given = triton.InferInput(name, list(x.shape), "FP32")
            given.set_data_from_numpy(x, binary_data=binary)
            for outputs in (None, [triton.InferRequestedOutput("output_0", binary_data=binary)]):
                result = client.infer("tiny", [given], outputs=outputs, request_id="a")
                assert np.allclose(result.as_numpy("output_0"), expected, atol=1e-5)
        statistics = client.get_inference_statistics("tiny")["model_stats"][0]
        assert statistics["inference_count"] >= 20
        client.load_model("tiny")
        assert client.is_model_ready("tiny")
        with pytest.raises(Exception, match="model must be one of"):
            client.get_model_metadata("nothing")
    finally:
        client.close()


def test_shared_memory(server: Any, name: str, x: np.ndarray, expected: np.ndarray) -> None:
    triton = pytest.importorskip("tritonclient.http")
    shm = pytest.importorskip("tritonclient.utils.shared_memory")
    client = triton.InferenceServerClient(server.address)
    region = shm.create_shared_memory_region("region", "/hasten-test-http", 4096)
    try:
        shm.set_shared_memory_region(region, [x])
        client.register_system_shared_memory("region", "/hasten-test-http", 4096)
        assert client.get_system_shared_memory_status()[0]["name"] == "region"
        given = triton.InferInput(name, list(x.shape), "FP32")
        given.set_shared_memory("region", x.nbytes)
        output = triton.InferRequestedOutput("output_0")
        output.set_shared_memory("region", expected.nbytes, offset=1024)
        client.infer("tiny", [given], outputs=[output])
        found = shm.get_contents_as_numpy(region, np.float32, list(expected.shape), 1024)
        assert np.allclose(found, expected, atol=1e-5)
        output.set_shared_memory("region", 4, offset=1024)
        with pytest.raises(Exception, match="must have 60 bytes"):
            client.infer("tiny", [given], outputs=[output])
        with pytest.raises(Exception, match="must be the name of a shared memory object"):
            client.register_system_shared_memory("bad", "../../etc/passwd", 16)
        client.unregister_system_shared_memory("region")
    finally:
        shm.destroy_shared_memory_region(region)
        client.close()


@pytest.mark.parametrize(
    ("path", "body", "code", "message"),
    [
        ("/v2/models/tiny/infer", b"{", 400, "must be JSON"),
        ("/v2/models/tiny/infer", b"[" * 100_000, 400, "must be JSON"),
        ("/v2/models/tiny/infer", {"inputs": [{"name": "x"}]}, 400, "each with `name`"),
        ("/v2/models/tiny/infer", {"inputs": []}, 400, "must have the input"),
        ("/v2/models/tiny/infer", {"inputs": [tensor(np.zeros((1, 5)), "NAME")]}, 400, "must have shape"),
        ("/v2/models/tiny/infer", {"inputs": [tensor(np.zeros((0, 4)), "NAME")]}, 400, "at least one row"),
        ("/v2/models/tiny/infer", {"inputs": [tensor(np.zeros((1, 4)), "other")]}, 400, "input must be one of"),
        ("/v2/models/tinny/infer", {"inputs": []}, 404, "model must be one of"),
        ("/v2/models/tiny/versions/9/infer", {"inputs": []}, 404, "version of tiny must be one of 1"),
        ("/v2/nothing", {}, 404, "nothing at this path"),
        ("/v2/models/tiny/infer", b"x" * (2**20 + 1), 413, "at most 1048576 bytes"),
    ],
)
def test_bad_requests_are_refused_clearly(
    server: Any, name: str, path: str, body: Any, code: int, message: str
) -> None:
    if isinstance(body, dict):
        body = json.loads(json.dumps(body).replace("NAME", name))
    found, _, data = call(server.address, "POST", path, body)
    assert found == code
    assert message in json.loads(data)["error"]


def test_a_body_without_a_length_is_limited_too(server: Any) -> None:
    connection = http.client.HTTPConnection(server.address, timeout=20)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request("POST", "/v2/models/tiny/infer", (b"x" * 65536 for _ in range(40)), encode_chunked=True)
        assert connection.getresponse().status == 413
    connection.close()


def test_metrics_page_and_openapi(server: Any, name: str, x: np.ndarray) -> None:
    call(server.address, "POST", "/v2/models/tiny/infer", {"inputs": [tensor(x, name)]})
    _, headers, data = call(server.address, "GET", "/metrics")
    assert headers["content-type"].startswith("text/plain")
    lines = data.decode().splitlines()
    success = [x for x in lines if x.startswith('hasten_requests_total{model="tiny",outcome="success"')]
    assert len(success) == 1
    assert float(success[0].split()[-1]) >= 1
    status = json.loads(call(server.address, "GET", "/status.json")[2])
    assert {model["name"] for model in status["models"]} == {"tiny", "other"}
    assert len(next(m for m in status["models"] if m["name"] == "other")["devices"]) == 2
    assert b"status.json" in call(server.address, "GET", "/")[2]
    paths = json.loads(call(server.address, "GET", "/openapi.json")[2])["paths"]
    assert "/v2/models/{model}/infer" in paths
    readable = call(server.address, "GET", "/docs")[2].decode()
    assert all(path in readable for path in paths)


def test_answers_are_not_swapped_between_clients(server: Any, artifact: Path, name: str) -> None:
    program = hasten.load(artifact)
    wrong: list[int] = []

    def client(seed: int) -> None:
        generator = np.random.default_rng(seed)
        connection = http.client.HTTPConnection(server.address, timeout=20)
        for _ in range(40):
            rows = generator.normal(size=(int(generator.integers(1, 6)), 4)).astype(np.float32)
            connection.request("POST", "/v2/models/tiny/infer", json.dumps({"inputs": [tensor(rows, name)]}))
            output = json.loads(connection.getresponse().read())["outputs"][0]
            if not np.allclose(np.array(output["data"]).reshape(output["shape"]), program(rows)[0], atol=1e-4):
                wrong.append(seed)
        connection.close()

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        assert call(server.address, "POST", "/v2/repository/models/tiny/load")[0] == 200
    for thread in threads:
        thread.join(30)
    assert wrong == []


def test_reloading_under_load_drops_no_request(server: Any, artifact: Path, name: str) -> None:
    expected, stop = hasten.load(artifact), threading.Event()
    failures: list[Any] = []
    answered = [0] * 4

    def client(number: int) -> None:
        x = np.full((1 + number, 4), number, np.float32)
        body = {"inputs": [tensor(x, name)]}
        while not stop.is_set():
            code, _, data = call(server.address, "POST", "/v2/models/tiny/infer", body)
            found = json.loads(data)["outputs"][0]["data"] if code == 200 else data
            if code != 200 or not np.allclose(found, expected(x)[0].ravel(), atol=1e-5):
                failures.append((code, found))
            answered[number] += 1

    threads = [threading.Thread(target=client, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            before = sum(answered)
            assert call(server.address, "POST", "/v2/repository/models/tiny/load")[0] == 200
            deadline = time.monotonic() + 20
            while sum(answered) < before + 4 and time.monotonic() < deadline:
                time.sleep(0.005)
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert not failures
    assert min(answered) > 0


def test_unloading(server: Any, name: str, x: np.ndarray) -> None:
    body = {"inputs": [tensor(x, name)]}
    assert call(server.address, "POST", "/v2/repository/models/other/unload")[0] == 200
    assert call(server.address, "POST", "/v2/models/other/infer", body)[0] == 404
    index = json.loads(call(server.address, "POST", "/v2/repository/index")[2])
    assert {entry["name"]: entry["state"] for entry in index} == {"tiny": "READY", "other": "UNAVAILABLE"}
    assert call(server.address, "POST", "/v2/repository/models/other/load")[0] == 200
    assert call(server.address, "POST", "/v2/models/other/infer", body)[0] == 200


def test_api_key_and_graceful_end(start: Start, artifact: Path, name: str, x: np.ndarray) -> None:
    triton = pytest.importorskip("tritonclient.grpc")
    with start(str(artifact), HASTEN_API_KEY="secret") as server:
        body = {"inputs": [tensor(x, name)]}
        path = "/v2/models/tiny/infer"
        assert call(server.address, "GET", "/v2/health/ready")[0] == 200
        assert call(server.address, "POST", path, body)[0] == 401
        assert call(server.address, "POST", path, body, X_API_Key="secreT")[0] == 401
        assert call(server.address, "GET", "/metrics")[0] == 401
        assert call(server.address, "POST", path, body, X_API_Key="secret")[0] == 200
        assert call(server.address, "POST", path, body, Authorization="Bearer secret")[0] == 200
        client = triton.InferenceServerClient(server.grpc)
        with pytest.raises(Exception, match="API key"):
            client.get_server_metadata()
        assert client.get_server_metadata(headers={"x-api-key": "secret"}).name == "hasten"
        client.close()
        codes: list[int] = []

        def flood() -> None:
            with contextlib.suppress(ConnectionError, http.client.HTTPException):
                while True:
                    codes.append(call(server.address, "POST", path, body, X_API_Key="secret")[0])

        threads = [threading.Thread(target=flood) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        assert server.stop() == 0
        for thread in threads:
            thread.join(10)
        assert codes
        assert set(codes) <= {200, 503}


def test_only_loopback_without_a_key(artifact: Path) -> None:
    from hasten.errors import InvalidInput
    from hasten.serve.run import ServeOptions, parse_entries

    with pytest.raises(InvalidInput, match="loopback"):
        ServeOptions(host="0.0.0.0")
    with pytest.raises(InvalidInput, match="together"):
        ServeOptions(key=artifact)
    (entry,) = parse_entries([f"digits:2={artifact}"])
    assert (entry.name, entry.version, entry.paths) == ("digits", "2", (artifact,))
    assert parse_entries([str(artifact)])[0].name == "tiny"
    with pytest.raises(InvalidInput, match="must be a folder that exists"):
        parse_entries(["nowhere"])


def test_what_is_refused_is_counted_as_failed(server: Any, name: str, x: np.ndarray) -> None:
    def failures() -> int:
        found = json.loads(call(server.address, "GET", "/v2/models/tiny/stats")[2])
        return int(found["model_stats"][0]["inference_stats"]["fail"]["count"])

    before = failures()
    assert call(server.address, "POST", "/v2/models/tiny/infer", {"inputs": [tensor(x[:, :2], name)]})[0] == 400
    assert call(server.address, "POST", "/v2/models/tiny/infer", b"{")[0] == 400
    assert failures() == before + 2
