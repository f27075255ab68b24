"""Whatever bytes come over a connection, the server answers with a refusal or a result, and goes on.

`HASTEN_FUZZ=20000 pytest tests/hardening` searches longer. Requests that once broke something are `BROKE`.
"""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hasten
from hasten.serve.app import App
from hasten.serve.models import Entry, ServeLimits
from hasten.serve.regions import Regions
from hasten.serve.repository import Repository

fuzz = settings(
    max_examples=int(os.environ.get("HASTEN_FUZZ", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
PATH = "/v2/models/tiny/infer"
WAIT_S = 10


def tensor(shape: Any, data: Any, **more: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": shape, "data": data, **more}


# Body, and what its answer says. Each of these once ended in an error of the server's own, or in much memory.
BROKE: list[tuple[dict[str, Any], str]] = [
    ({"inputs": [tensor([0, 2**62, 4], [])]}, "must have at most 32 sizes"),
    ({"inputs": [tensor([0, 2**200], [])]}, "must have at most 32 sizes"),
    ({"inputs": [tensor([1] * 70, [1.0])]}, "must have at most 32 sizes"),
    ({"inputs": [tensor([0, 2**62], None, parameters={"binary_data_size": 0})]}, "must have at most 32 sizes"),
    ({"inputs": [tensor([1, 4], [0.0] * 4)], "outputs": [{"name": "output_0"}] * 1000}, "must name every tensor once"),
    ({"inputs": [tensor([1, 4], [0.0] * 4)] * 2}, "must name every tensor once"),
    ({"inputs": [tensor([1, 4], [0.0] * 4) | {"name": "n" * 100_000}]}, "input must be one of"),
    ({"inputs": [tensor([1, 4], [0.0] * 4) | {"name": "\ud800"}]}, "input must be one of"),
    ({"inputs": [tensor([-1, 4], [0.0] * 4)]}, "must be a list of sizes"),
    ({"inputs": [tensor([True, 4], [0.0] * 4)]}, "must be a list of sizes"),
    ({"inputs": [tensor([1, 4], [10**400] * 4)]}, "must hold FP32 numbers"),
    ({"inputs": [tensor([1, 4], [[[[[1]]]], 2, 3, 4])]}, "must hold FP32 numbers"),
]


class Transport(asyncio.Transport):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closed = b"", False

    def write(self, data: Any) -> None:
        if not self.closed:
            self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def statuses(self) -> list[int]:
        """Of the answers so far; their bodies are passed over by their stated lengths."""
        found, rest = [], self.written
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            first, *lines = head.split(b"\r\n")
            assert first.startswith(b"HTTP/1.1 "), first
            found.append(int(first.split()[1]))
            headers = dict(line.lower().split(b": ", 1) for line in lines)
            rest = rest[int(headers.get(b"content-length", b"0")) :]
        return found


class Site:
    """A server without sockets: bytes in, bytes out."""

    def __init__(self, repository: Repository, loop: asyncio.AbstractEventLoop) -> None:
        uvicorn = pytest.importorskip("uvicorn", reason="the `serve` extra is not installed")
        from uvicorn.server import ServerState

        from hasten.serve.direct import DirectProtocol

        self.loop, self._state = loop, ServerState()
        self.app = App(repository, regions=Regions(allowed=True))
        self._config = uvicorn.Config(self.app, http=DirectProtocol, ws="none", lifespan="off", interface="asgi3")
        self._config.load()
        self._protocol = DirectProtocol

    def send(self, *parts: bytes, turns: int = 40) -> Transport:
        """Send parts over a new connection and wait for an answer, or until nothing happens for so many turns."""
        return self.loop.run_until_complete(self._send(parts, turns))

    async def _send(self, parts: tuple[bytes, ...], turns: int) -> Transport:
        transport = Transport()
        protocol = self._protocol(config=self._config, server_state=self._state, app_state={}, _loop=self.loop)
        protocol.connection_made(transport)
        for part in parts:
            if not transport.closed:
                protocol.data_received(part)
            await asyncio.sleep(0)
        end = self.loop.time() + WAIT_S
        idle = 0
        while not transport.written and not transport.closed and idle < turns and self.loop.time() < end:
            await asyncio.sleep(0.001)
            cycle = protocol.cycle
            idle = 0 if cycle is not None and not cycle.more_body and not cycle.response_complete else idle + 1
        closed = transport.closed
        protocol.connection_lost(None)
        transport.closed = closed
        return transport


@pytest.fixture(scope="module")
def site(artifact: Path) -> Iterator[Site]:
    limits = ServeLimits(body_bytes=1 << 20, receive_s=20)
    repository = Repository([Entry("tiny", "1", (artifact,))], limits, {"profile_s": 0})
    repository.open()
    loop = asyncio.new_event_loop()
    try:
        yield Site(repository, loop)
    finally:
        repository.close()
        loop.close()


@pytest.fixture(scope="module")
def expected(artifact: Path) -> np.ndarray:
    answer: np.ndarray = hasten.load(artifact)(np.zeros((1, 4), np.float32))[0]
    return answer


def post(body: bytes, path: str = PATH, headers: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


GOOD = post(json.dumps({"inputs": [tensor([1, 4], [0.0] * 4)]}).encode())


def works(site: Site, expected: np.ndarray) -> None:
    answer = site.send(GOOD)
    assert answer.statuses() == [200]
    assert np.allclose(json.loads(answer.written.partition(b"\r\n\r\n")[2])["outputs"][0]["data"], expected.ravel())


@pytest.mark.parametrize(("body", "message"), BROKE)
@pytest.mark.parametrize("headers", ["", "Expect: nothing\r\n"])  # the short way, and the ordinary one
def test_requests_that_once_broke_something(
    site: Site, expected: np.ndarray, body: dict[str, Any], message: str, headers: str
) -> None:
    answer = site.send(post(json.dumps(body).encode(), headers=headers))
    assert answer.statuses() == [400], answer.written[-300:]
    assert message in json.loads(answer.written.partition(b"\r\n\r\n")[2])["error"]
    assert len(answer.written) < 2000
    works(site, expected)


@pytest.mark.parametrize("digits", [19, 5000])
@pytest.mark.parametrize("header", ["Inference-Header-Content-Length", "Content-Length"])
def test_numbers_of_many_digits_are_no_sizes(site: Site, expected: np.ndarray, header: str, digits: int) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\n{header}: {'9' * digits}\r\n"
    end = "\r\n" if header == "Content-Length" else "Content-Length: 2\r\n\r\n{}"
    assert site.send(f"{head}{end}".encode()).statuses() in ([400], [413], [])
    works(site, expected)


def test_a_head_without_an_end_is_refused(site: Site, expected: np.ndarray) -> None:
    start = f"POST {PATH} HTTP/1.1\r\nHost: x\r\n".encode()
    for filler in (b"A: b\r\n" * 200, b"A" * 1000):
        answer = site.send(start, *[filler] * 100)
        assert answer.statuses() in ([431], [400])
        assert answer.closed
    # So are trailers of a chunked body.
    chunked = start + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    assert site.send(chunked, *[b"A: b\r\n" * 200] * 100).closed
    works(site, expected)


def test_a_head_that_never_ends_is_given_up(artifact: Path, expected: np.ndarray) -> None:
    loop = asyncio.new_event_loop()
    repository = Repository([Entry("tiny", "1", (artifact,))], ServeLimits(receive_s=0.05), {"profile_s": 0})
    repository.open()
    try:
        site = Site(repository, loop)
        for parts in ((), (b"POST ",), (GOOD[:40],)):
            answer = site.send(*parts, turns=10_000)
            assert answer.statuses() == [408]
            assert answer.closed
        works(site, expected)
    finally:
        repository.close()
        loop.close()


@pytest.mark.parametrize("origin", ["https://example.com", "null", "http://127.0.0.1.example.com", "http://[::2]:80"])
def test_pages_of_other_sites_cannot_use_a_server_without_a_key(site: Site, origin: str) -> None:
    for path in (PATH, "/v2/repository/models/tiny/unload"):
        assert site.send(post(b"{}", path, f"Origin: {origin}\r\n")).statuses() == [403]
    assert site.app.repository.models()


def test_pages_of_this_machine_may(site: Site) -> None:
    for origin in ("http://localhost:3000", "http://127.0.0.1:8000", "http://[::1]:8000"):
        body = GOOD.partition(b"\r\n\r\n")[2]
        assert site.send(post(body, headers=f"Origin: {origin}\r\n")).statuses() == [200]


def test_a_region_that_shrinks_is_an_error_and_not_the_end(site: Site, expected: np.ndarray) -> None:
    path = Path(f"/dev/shm/hasten-test-shrinks-{os.getpid()}")
    try:
        path.write_bytes(bytes(2**20))
        about = {"shared_memory_region": "shrinks", "shared_memory_byte_size": 16, "shared_memory_offset": 2**20 - 16}
        body = post(json.dumps({"inputs": [tensor([1, 4], None, parameters=about)]}).encode())
        register = json.dumps({"key": path.name, "byte_size": 2**20}).encode()
        assert site.send(post(register, "/v2/systemsharedmemory/region/shrinks/register")).statuses() == [200]
        assert site.send(body).statuses() == [200]
        os.truncate(path, 0)
        assert site.send(body).statuses() == [400]
        works(site, expected)
    finally:
        path.unlink()
        site.app.regions.unregister(None)


@pytest.mark.parametrize("key", ["../etc/passwd", "/../x", "a/b", ".", "", "\x00", 7, None, "no-such-object"])
def test_only_objects_of_shared_memory_can_be_named(site: Site, key: Any) -> None:
    register = json.dumps({"key": key, "byte_size": 16}).encode()
    assert site.send(post(register, "/v2/systemsharedmemory/region/r/register")).statuses() == [400]


@fuzz
@given(data=st.data())
def test_any_bytes_on_a_connection(site: Site, expected: np.ndarray, data: st.DataObject) -> None:
    chunked = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n".encode()
    content = bytearray(
        data.draw(st.sampled_from([GOOD, chunked, b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n", GOOD + GOOD]))
    )
    for _ in range(data.draw(st.integers(0, 3))):
        at, length = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, 6))
        content[at : at + length] = data.draw(
            st.binary(max_size=6) | st.sampled_from([b"\r\n", b"\0", b"9" * 30, b"%00"])
        )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=4)))
    parts = [bytes(content[a:b]) for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    answer = site.send(*parts)
    assert not {status for status in answer.statuses() if status >= 500}, answer.written[-300:]
    works(site, expected)


_segments = st.sampled_from(
    ["v2", "models", "tiny", "infer", "versions", "1", "health", "live", "stats", "config", "repository", "index",
     "systemsharedmemory", "region", "r", "register", "unregister", "status", "metrics", "..", "", "%2e%2e", "é"]
)  # fmt: skip
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3),
    max_leaves=6,
)


@fuzz
@given(method=st.sampled_from(["GET", "POST", "HEAD", "PUT"]), path=st.lists(_segments, max_size=7), body=_json)
def test_any_path_and_body(site: Site, method: str, path: list[str], body: Any) -> None:
    scope = {"type": "http", "method": method, "path": "/" + "/".join(path), "headers": []}
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    site.loop.run_until_complete(site.app(scope, receive, send))
    assert sent[0]["status"] < 500


def test_any_grpc_message(site: Site, expected: np.ndarray) -> None:
    grpc = pytest.importorskip("grpc", reason="the `serve` extra is not installed")
    from google.protobuf.message import DecodeError

    from hasten.serve.grpc import Service
    from hasten.serve.messages import MESSAGES

    class Context:
        code: Any = None

        async def abort(self, code: Any, message: str) -> None:
            self.code = code
            raise grpc.RpcError(message)

        def set_trailing_metadata(self, pairs: Any) -> None: ...

        def invocation_metadata(self) -> tuple[()]:
            return ()

    service = Service(site.app.repository, site.app.regions)
    good = MESSAGES["ModelInferRequest"](model_name="tiny", raw_input_contents=[bytes(16)])
    good.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    whole = good.SerializeToString()

    def call(message: Any) -> Any:
        context = Context()
        handle = service._guarded("ModelInfer", service._model_infer)
        try:
            return site.loop.run_until_complete(handle(message, context)), None
        except grpc.RpcError:
            return None, context.code

    for shape in ([0, 2**62], [-(2**63)], [1] * 70, [2**62, 2**62]):
        hostile = MESSAGES["ModelInferRequest"].FromString(whole)
        del hostile.inputs[0].shape[:]
        hostile.inputs[0].shape.extend(shape)
        assert call(hostile)[1] is grpc.StatusCode.INVALID_ARGUMENT
    hostile = MESSAGES["ModelInferRequest"].FromString(whole)
    for _ in range(100):
        hostile.outputs.add(name="output_0")
    assert call(hostile)[1] is grpc.StatusCode.INVALID_ARGUMENT

    @fuzz
    @given(data=st.data())
    def search(data: st.DataObject) -> None:
        content = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        try:
            message = MESSAGES["ModelInferRequest"].FromString(bytes(content))
        except DecodeError:
            return
        assert call(message)[1] is not grpc.StatusCode.INTERNAL

    search()
    answer, _ = call(good)
    assert np.allclose(np.frombuffer(answer.raw_output_contents[0], np.float32), expected.ravel())
