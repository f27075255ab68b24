"""A shorter way for plain inference requests: from uvicorn's parser to the engine and back, past ASGI.

Per request it saves a task, a future, two timers and half of the system calls; measured in
docs/decisions/2026-11-24-server-hot-path.md. Whatever is not plain - another route, chunked or compressed bodies,
pipelining, `Expect`, a connection that will close - goes uvicorn's ordinary way into the same `App`.
"""

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from hasten.serve.app import Answer, App, error_body, failure, is_size
from hasten.serve.models import Model
from hasten.serve.tensors import InferRequest
from hasten.serve.waiting import Call

_PATH = re.compile(rb"/v2/models/([^/?#%\x80-\xff]+)(?:/versions/([^/?#%\x80-\xff]+))?/infer")
_NOT_PLAIN = frozenset((b"transfer-encoding", b"content-encoding", b"upgrade", b"expect", b"origin"))
# A request line with all headers; also what may come between two parts of a body.
_HEAD_BYTES = 1 << 16
_JOINED_BYTES = 1 << 17
# Named once: an annotation inside a function is evaluated at every request.
_Outputs = Mapping[str, np.ndarray] | None
_Error = BaseException | None


class _Exchange:
    """One request and its answer; the public names are those that uvicorn looks at in its own exchanges."""

    __slots__ = (
        "call", "chunks", "disconnected", "json_size", "keep_alive", "message_event", "model_name", "more_body",
        "response_complete", "timer", "version",
    )  # fmt: skip

    def __init__(self, model_name: str, version: str, json_size: int | None, message_event: asyncio.Event) -> None:
        self.model_name, self.version, self.json_size = model_name, version, json_size
        self.message_event = message_event
        self.keep_alive, self.more_body = True, True
        self.disconnected = self.response_complete = False
        self.chunks: list[bytes] = []
        self.timer: asyncio.TimerHandle | None = None
        self.call: tuple[Model, Call] | None = None


class DirectProtocol(HttpToolsProtocol):  # type: ignore[misc]  # uvicorn is checked as Any
    """uvicorn's HTTP connection; `config.app` must be an `App` that nothing is wrapped around."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        assert isinstance(self.config.app, App)
        self._app: App = self.config.app
        self._event = asyncio.Event()  # nobody waits for it
        self._current: _Exchange | None = None
        self._headers_of: Any = None
        self._default_head = b""
        # Bytes since the parser last got somewhere, and by when a head has to be complete.
        self._unread_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A first request has to come in time."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Parse; a head that is not complete yet must not grow for ever, and it and a body have to come in time."""
        self._unread_bytes += len(data)
        super().data_received(data)
        if self._unread_bytes:
            if self._unread_bytes > _HEAD_BYTES:
                self._refuse(431, f"The headers must have at most {_HEAD_BYTES} bytes.")
            elif self._head_timer is None:
                self._await_head()
        exchange = self._current
        if exchange is not None and exchange.more_body and exchange.timer is None:
            exchange.timer = self.loop.call_later(self._app.repository.limits.receive_s, self._too_slow, exchange)

    def _await_head(self) -> None:
        limit_s = self._app.repository.limits.receive_s
        self._head_timer = self.loop.call_later(limit_s, self._refuse, 408, "The headers must arrive in time.")

    def _got_somewhere(self) -> None:
        self._unread_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: int, message: str) -> None:
        """Say why, if nothing else is being answered, and close."""
        self._got_somewhere()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            body = error_body(message)
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()

    def on_headers_complete(self) -> None:
        """Decide which way a request goes."""
        self._got_somewhere()
        exchange = self._plain()
        if exchange is None:
            super().on_headers_complete()
        else:
            # There uvicorn looks for what is unfinished: on shutdown, and for requests that are pipelined behind it.
            self.cycle = self._current = exchange

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body."""
        self._unread_bytes = 0
        if self.cycle is not self._current:
            super().on_body(body)
        elif self._current is not None and not self._current.response_complete:
            self._current.chunks.append(body)

    def on_message_complete(self) -> None:
        """Start on a request that is complete."""
        self._got_somewhere()
        exchange = self._current
        if exchange is None or self.cycle is not exchange:
            super().on_message_complete()
        elif not exchange.response_complete:
            exchange.more_body = False
            if exchange.timer is not None:
                exchange.timer.cancel()
            self._start(exchange)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client went away: its rows need not run."""
        self._got_somewhere()
        exchange, self._current = self._current, None
        if exchange is not None:
            exchange.disconnected = True
            if exchange.timer is not None:
                exchange.timer.cancel()
            if exchange.call is not None and not exchange.response_complete:
                model, call = exchange.call
                model.drop(call)
        super().connection_lost(exc)

    def _plain(self) -> _Exchange | None:
        """The exchange of a request that may go the short way, or None."""
        if self.cycle is not None and not self.cycle.response_complete:
            return None
        match = _PATH.fullmatch(self.url)
        if match is None or self.parser.get_method() != b"POST" or self.flow.write_paused:
            return None
        if self.parser.get_http_version() != "1.1" or not self.parser.should_keep_alive():
            return None
        length = json_size = None
        for name, value in self.headers:
            if name == b"content-length":
                length = value
            elif name == b"inference-header-content-length":
                json_size = value
            elif name in _NOT_PLAIN:
                return None
        if length is None or not is_size(length) or int(length) > self._app.repository.limits.body_bytes:
            return None
        if (json_size is not None and not is_size(json_size)) or not self._app.authorises(self.headers):
            return None
        version = match[2].decode() if match[2] else ""
        return _Exchange(match[1].decode(), version, None if json_size is None else int(json_size), self._event)

    def _start(self, exchange: _Exchange) -> None:
        chunks = exchange.chunks
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        try:
            model = self._app.repository.get(exchange.model_name, exchange.version)
            request = model.decode(body, exchange.json_size, self._app.regions)

            def tell(outputs: _Outputs, error: _Error) -> None:
                self._finish(exchange, model, request, outputs, error)

            exchange.call = model, model.start(request.inputs, tell)
        except Exception as error:
            self._write(exchange, failure(error))

    def _finish(
        self,
        exchange: _Exchange,
        model: Model,
        request: InferRequest,
        outputs: _Outputs,
        error: _Error,
    ) -> None:
        if exchange.response_complete or exchange.disconnected:
            return
        if outputs is None:
            assert error is not None
            self._write(exchange, failure(error))
            return
        try:
            answer = self._app.inferred(model, request, outputs)
        except Exception as failed:
            answer = failure(failed)
        self._write(exchange, answer)

    def _too_slow(self, exchange: _Exchange) -> None:
        if not exchange.response_complete:
            exchange.keep_alive = False
            self._write(exchange, Answer(error_body("The body must arrive in time."), 408))

    def _write(self, exchange: _Exchange, answer: Answer) -> None:
        """Head and body at once, then whatever was pipelined behind."""
        defaults = self.server_state.default_headers
        if defaults is not self._headers_of:  # uvicorn makes a new list every second, for the date
            self._headers_of = defaults
            self._default_head = b"".join(b"%b: %b\r\n" % pair for pair in defaults)
        parts = [STATUS_LINE[answer.status], self._default_head, b"content-type: ", answer.kind]
        parts.append(b"\r\ncontent-length: %d\r\n" % len(answer.body))
        parts += [b"%b: %b\r\n" % pair for pair in answer.headers]
        parts.append(b"\r\n" if exchange.keep_alive else b"connection: close\r\n\r\n")
        if len(answer.body) <= _JOINED_BYTES:
            parts.append(answer.body)
        exchange.response_complete, self._current, exchange.call = True, None, None
        self.transport.write(b"".join(parts))
        if len(answer.body) > _JOINED_BYTES:
            self.transport.write(answer.body)
        if not exchange.keep_alive:
            self.transport.close()
        self.on_response_complete()
