"""The report page of a search that is still running, on the loopback interface."""

import http.server
import threading
from pathlib import Path
from typing import Any, Self

from hasten.errors import InvalidInput
from hasten.report.data import run_data
from hasten.report.html import as_json, page


class LivePage:
    """Serves the page of a run folder while the block runs; a context manager. `url` is where.

    Args:
        folder: The run folder; it may not exist yet.
        port: 0 takes a free one.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        handler = type("Handler", (_Handler,), {"folder": folder})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    folder: Path

    def do_GET(self) -> None:
        """The page, or its data alone."""
        # A page elsewhere on the web may point its own host name at this address.
        if (self.headers.get("Host") or "").rsplit(":", 1)[0] not in ("127.0.0.1", "localhost"):
            self._answer(403, "text/plain", b"")
            return
        try:
            data = run_data(self.folder)
        except (InvalidInput, OSError):
            self._answer(200, "text/html", _WAITING)
            return
        if self.path == "/":
            self._answer(200, "text/html", page(data, live=True).encode())
        elif self.path == "/data.json":
            self._answer(200, "application/json", as_json(data).encode())
        else:
            self._answer(404, "text/plain", b"")

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not worth a line."""


_WAITING = b"""<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="2">
<title>hasten</title></head><body><p>The search is measuring the original.</p></body></html>"""
