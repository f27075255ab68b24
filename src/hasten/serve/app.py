"""The HTTP side as a raw ASGI application: the protocol's routes, limits, API key, metrics, status page."""

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from hasten import __version__
from hasten.engine.work import DeviceFailed
from hasten.errors import InvalidInput
from hasten.serve.models import Model, Overloaded, TooSlow
from hasten.serve.openapi import document, page
from hasten.serve.page import PAGE
from hasten.serve.regions import Regions
from hasten.serve.repository import Repository, UnknownModel
from hasten.serve.tensors import InferRequest, encode_response

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

EXTENSIONS = ["binary_tensor_data", "model_configuration", "model_repository", "statistics", "system_shared_memory"]
_LOG = logging.getLogger("hasten.serve")
# Bodies up to this many times the limit are read and dropped before they are refused.
_DRAINED = 2
_DIGITS = 18


@dataclass
class Answer:
    """Status, body and headers of a response."""

    body: bytes = b""
    status: int = 200
    kind: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


class _TooLarge(Exception):
    """The body exceeds the limit."""


class App:
    """An ASGI application.

    Args:
        repository: The models.
        api_key: If set, every request must carry it: `Authorization: Bearer KEY` or `X-API-Key`. Only health checks
            and the status page, which is empty without it, need none.
        regions: Shared memory.
    """

    def __init__(self, repository: Repository, *, api_key: str | None = None, regions: Regions | None = None) -> None:
        self.repository = repository
        self._key = api_key.encode() if api_key else None
        self.regions = regions or Regions(allowed=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event; only HTTP is served."""
        if scope["type"] != "http":
            return
        try:
            answer = await self._respond(scope, receive)
        except Exception as error:
            answer = failure(error)
        length = str(len(answer.body)).encode()
        headers = [(b"content-type", answer.kind), (b"content-length", length), *answer.headers]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body if scope["method"] != "HEAD" else b""})

    async def _respond(self, scope: Scope, receive: Receive) -> Answer:
        parts = [unquote(part) for part in scope["path"].strip("/").split("/")]
        headers = dict(scope["headers"])
        if parts[:2] == ["v2", "health"]:
            return self._health(parts[2:])
        if parts == [""] and scope["method"] in ("GET", "HEAD"):
            return Answer(PAGE, kind=b"text/html; charset=utf-8")
        if self._key is None and _is_foreign(headers.get(b"origin")):
            return Answer(error_body("Pages of other sites must not use this server; an API key would let them."), 403)
        if not self.authorises(scope["headers"]):
            return Answer(
                error_body("The request must carry the API key."), 401, headers=((b"www-authenticate", b"Bearer"),)
            )
        if scope["method"] == "POST":
            return await self._post(parts, headers, receive)
        if scope["method"] in ("GET", "HEAD"):
            return self._get(parts)
        return Answer(error_body("The method must be GET or POST."), 405)

    def authorises(self, pairs: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request with these headers may do anything: it carries the key, or there is none."""
        if self._key is None:
            return True
        headers = dict(pairs)
        given = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        return hmac.compare_digest(given, self._key)

    def _health(self, parts: list[str]) -> Answer:
        ready = self.repository.ready
        if parts == ["live"] or (parts == ["ready"] and ready):
            return Answer()
        return Answer(error_body("not ready"), 503) if parts == ["ready"] else _not_found()

    def _get(self, parts: list[str]) -> Answer:
        if parts == ["metrics"]:
            from hasten.serve.metrics import CONTENT_TYPE, render  # its library takes a while to import

            return Answer(render(self.repository), kind=CONTENT_TYPE)
        if parts == ["openapi.json"]:
            return _json(document(self.repository))
        if parts == ["docs"]:
            return Answer(page(document(self.repository)), kind=b"text/html; charset=utf-8")
        if parts == ["status.json"]:
            return _json(status(self.repository))
        if parts == ["v2"]:
            return _json({"name": "hasten", "version": __version__, "extensions": EXTENSIONS})
        if parts == ["v2", "models", "stats"]:
            return _json({"model_stats": [model.triton_statistics() for model in self.repository.models()]})
        if parts[:2] == ["v2", "models"] and len(parts) >= 3:
            return self._model(parts[2], parts[3:])
        if parts[:2] == ["v2", "systemsharedmemory"] and parts[-1] == "status":
            return _json(self.regions.status(parts[3] if len(parts) == 5 else None))
        return _not_found()

    def _model(self, name: str, rest: list[str]) -> Answer:
        version = ""
        if rest[:1] == ["versions"] and len(rest) >= 2:
            version, rest = rest[1], rest[2:]
        model = self.repository.get(name, version)
        if not rest:
            return _json(model.metadata(self.repository.versions(name)))
        if rest == ["ready"]:
            return Answer()
        if rest == ["config"]:
            return _json(model.config())
        if rest == ["stats"]:
            return _json({"model_stats": [model.triton_statistics()]})
        return _not_found()

    async def _post(self, parts: list[str], headers: dict[bytes, bytes], receive: Receive) -> Answer:
        try:
            body = await self._body(headers, receive)
        except _TooLarge:
            limit = self.repository.limits.body_bytes
            return Answer(
                error_body(f"The body must have at most {limit} bytes."), 413, headers=((b"connection", b"close"),)
            )
        except TimeoutError:
            return Answer(error_body("The body must arrive in time."), 408, headers=((b"connection", b"close"),))
        if parts[:2] == ["v2", "models"] and parts[-1] == "infer" and len(parts) in (4, 6):
            return await self._infer(parts[2], parts[4] if len(parts) == 6 else "", headers, body)
        if parts == ["v2", "repository", "index"]:
            return _json(self.repository.index())
        if parts[:3] == ["v2", "repository", "models"] and len(parts) == 5:
            if parts[4] == "load":
                await self.repository.load(parts[3])
                return Answer()
            if parts[4] == "unload":
                await self.repository.unload(parts[3])
                return Answer()
        if parts[:2] == ["v2", "systemsharedmemory"]:
            return self._shared_memory(parts[2:], body)
        return _not_found()

    async def _infer(self, name: str, version: str, headers: dict[bytes, bytes], body: bytes) -> Answer:
        if b"content-encoding" in headers:
            return Answer(error_body("The body must not be compressed."), 415)
        model = self.repository.get(name, version)
        given = headers.get(b"inference-header-content-length")
        if given is not None and not is_size(given):
            raise InvalidInput("Inference-Header-Content-Length must be a number.")
        request = model.decode(body, None if given is None else int(given), self.regions)
        outputs = await model.infer(request.inputs)
        return self.inferred(model, request, outputs)

    def inferred(self, model: Model, request: InferRequest, outputs: Mapping[str, np.ndarray]) -> Answer:
        """The answer to an inference request."""
        data, json_size = encode_response(request, model.entry.name, model.entry.version, outputs, self.regions)
        if json_size is None:
            return Answer(data)
        extra = ((b"inference-header-content-length", b"%d" % json_size),)
        return Answer(data, kind=b"application/octet-stream", headers=extra)

    def _shared_memory(self, parts: list[str], body: bytes) -> Answer:
        if parts == ["unregister"]:
            self.regions.unregister(None)
            return Answer()
        if len(parts) == 3 and parts[0] == "region" and parts[2] == "unregister":
            self.regions.unregister(parts[1])
            return Answer()
        if len(parts) == 3 and parts[0] == "region" and parts[2] == "register":
            try:
                given = json.loads(body)
            except (ValueError, RecursionError):
                given = None
            if not isinstance(given, dict):
                raise InvalidInput("The request must be JSON with `key`, `offset` and `byte_size`.")
            self.regions.register(parts[1], given.get("key"), given.get("offset", 0), given.get("byte_size"))
            return Answer()
        return _not_found()

    async def _drop(self, receive: Receive) -> None:
        """Read a body that is a little too large to its end: a client still sending would not hear the refusal."""
        async with asyncio.timeout(self.repository.limits.receive_s):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        limits = self.repository.limits
        declared = headers.get(b"content-length", b"0")
        if is_size(declared) and int(declared) > limits.body_bytes:
            if int(declared) <= _DRAINED * limits.body_bytes:
                await self._drop(receive)
            raise _TooLarge
        chunks: list[bytes] = []
        size, more = 0, True
        async with asyncio.timeout(limits.receive_s):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise InvalidInput("The client went away.")
                chunks.append(message.get("body", b""))
                more = message.get("more_body", False)
                size += len(chunks[-1])
                if size > limits.body_bytes:
                    raise _TooLarge
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def is_size(text: bytes) -> bool:
    """Whether a header holds a number of bytes; Python takes long over numbers of thousands of digits."""
    return text.isdigit() and len(text) <= _DIGITS


def _is_foreign(origin: bytes | None) -> bool:
    """Whether a browser says that a page from elsewhere asks: any page may send requests to this machine."""
    if origin is None:
        return False
    try:
        host = urlsplit(origin.decode("ascii")).hostname or ""
        return host != "localhost" and not ip_address(host).is_loopback
    except ValueError:
        return True


def status(repository: Repository) -> dict[str, Any]:
    """What the status page shows: counters, devices, queue and latencies of every model."""
    return {
        "version": __version__,
        "models": [
            {
                "name": model.entry.name,
                "version": model.entry.version,
                "counters": vars(model.counters),
                **model.engine.statistics(),
            }
            for model in repository.models()
        ],
    }


def failure(error: BaseException) -> Answer:
    """The answer to a request that failed."""
    if isinstance(error, Overloaded):
        retry = ((b"retry-after", str(error.retry_after_s).encode()),)
        return Answer(error_body(str(error)), 503, headers=retry)
    if isinstance(error, UnknownModel):
        return Answer(error_body(str(error)), 404)
    if isinstance(error, InvalidInput):
        return Answer(error_body(str(error)), 400)
    if isinstance(error, TooSlow):
        return Answer(error_body(str(error)), 504)
    if isinstance(error, DeviceFailed):
        return Answer(error_body(str(error)), 503, headers=((b"retry-after", b"1"),))
    _LOG.error("request failed", exc_info=error)
    return Answer(error_body("The model failed; the server's log says why."), 500)


def error_body(message: str) -> bytes:
    """The JSON of an error."""
    return json.dumps({"error": message}).encode()


def _json(value: Any) -> Answer:
    return Answer(json.dumps(value).encode())


def _not_found() -> Answer:
    return Answer(error_body("There is nothing at this path."), 404)
