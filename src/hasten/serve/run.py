"""One server process: HTTP on uvicorn, gRPC on grpc.aio, one event loop, one set of models; ends gracefully."""

import asyncio
import ipaddress
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hasten.errors import InvalidInput
from hasten.serve import memory
from hasten.serve.models import Entry, ServeLimits
from hasten.serve.repository import Repository


@dataclass(frozen=True)
class ServeOptions:
    """Where and how to serve.

    Attributes:
        host: Address to listen on; anything but loopback wants an API key.
        port: HTTP port; 0: any free one.
        grpc_port: gRPC port; 0: any free one; None: no gRPC.
        api_key: Key that clients must send; None: none.
        certificate, key: PEM files for TLS; both or neither.
        shared_memory: Whether clients on this machine may pass tensors in system shared memory.
        drain_s: How long requests that were taken may run on when the server is told to end.
        limits: For every model.
        engine: Options of `hasten.Engine`.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    api_key: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    shared_memory: bool = False
    drain_s: float = 30.0
    limits: ServeLimits = field(default_factory=ServeLimits)
    engine: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InvalidInput("`certificate` and `key` must be given together, but only one was.")
        if not self.drain_s >= 0:
            raise InvalidInput(f"`drain_s` must be at least 0, but got {self.drain_s:g}.")
        if self.api_key is None and not _is_loopback(self.host):
            raise InvalidInput(
                f"`host` must be a loopback address when there is no API key, but got {self.host!r}. "
                "Set HASTEN_API_KEY, or listen on 127.0.0.1."
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse_entries(texts: Sequence[str]) -> list[Entry]:
    """`path`, `name=path`, `name:version=path`, and `name=path+path` for several devices.

    Raises:
        InvalidInput: Not a name, or nothing at the path.
    """
    entries = []
    for text in texts:
        label, equals, where = text.rpartition("=")
        paths = tuple(Path(part) for part in (where if equals else text).split("+"))
        for path in paths:
            if not path.is_dir():
                raise InvalidInput(f"ARTIFACT must be a folder that exists, but {path} does not.")
        name, _, version = (label if equals else paths[0].resolve().stem).partition(":")
        if not name or "/" in name:
            raise InvalidInput(f"The name of a model must not be empty or hold a slash, but got {name!r}.")
        entries.append(Entry(name, version or "1", paths))
    return entries


def serve(entries: Sequence[Entry], options: ServeOptions, ready: Callable[[str, str | None], None]) -> None:
    """Serve until SIGINT or SIGTERM, then answer what was taken and return.

    Args:
        entries: What to serve.
        options: Where and how.
        ready: Told the HTTP and gRPC addresses when requests are taken.

    Raises:
        InvalidInput: A library is missing, an artifact cannot be loaded, or the port is taken.
    """
    try:
        import httptools  # noqa: F401
        import uvicorn
    except ImportError:
        raise InvalidInput("Serving needs: pip install 'hasten[serve]'") from None
    repository = Repository(entries, options.limits, options.engine)
    memory.share_one_heap()
    repository.open()
    memory.settle()
    # uvicorn ends gracefully on a signal and then raises it again for whoever handled it before: ignored here.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(uvicorn, repository, options, ready))
    finally:
        repository.close()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _serve(
    uvicorn: Any, repository: Repository, options: ServeOptions, ready: Callable[[str, str | None], None]
) -> None:
    from hasten.serve.app import App
    from hasten.serve.direct import DirectProtocol
    from hasten.serve.regions import Regions

    regions = Regions(options.shared_memory)
    app = App(repository, api_key=options.api_key, regions=regions)
    config = uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        ssl_certfile=options.certificate,
        ssl_keyfile=options.key,
        http=DirectProtocol,
        ws="none",
        proxy_headers=False,
        interface="asgi3",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=max(1, round(options.drain_s)),
    )
    socket = _bound(config)
    grpc_server, grpc_address = None, None
    if options.grpc_port is not None:
        grpc_server, grpc_address = await _start_grpc(repository, regions, options)
    server = uvicorn.Server(config)
    stopping = asyncio.create_task(_stop_grpc(server, repository, grpc_server, options.drain_s))
    address = f"http{'s' if options.certificate else ''}://{options.host}:{socket.getsockname()[1]}"
    announcing = asyncio.create_task(_announce(server, lambda: ready(address, grpc_address)))
    try:
        await server.serve(sockets=[socket])
    finally:
        server.should_exit = True
        announcing.cancel()
        await stopping


def _bound(config: Any) -> Any:
    """The listening socket; uvicorn's own way ends the process when the port is taken."""
    import socket

    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((config.host, config.port))
    except OSError as error:
        listening.close()
        raise InvalidInput(f"`port` must be free on {config.host}, but {config.port}: {error.strerror}.") from error
    return listening


async def _announce(server: Any, ready: Callable[[], None]) -> None:
    while not server.started:
        await asyncio.sleep(0.005)
    ready()


async def _stop_grpc(server: Any, repository: Repository, grpc_server: Any, drain_s: float) -> None:
    """Take no new work from either protocol as soon as the server is to end."""
    while not server.should_exit:
        await asyncio.sleep(0.05)
    repository.draining = True
    if grpc_server is not None:
        await grpc_server.stop(drain_s)


async def _start_grpc(repository: Repository, regions: Any, options: ServeOptions) -> tuple[Any, str]:
    try:
        from hasten.serve.grpc import Service, start_grpc
    except ImportError:
        raise InvalidInput("Serving gRPC needs: pip install 'hasten[serve]'; or use --no-grpc.") from None
    tls = None
    if options.certificate is not None and options.key is not None:
        tls = (options.key.read_bytes(), options.certificate.read_bytes())
    host = f"[{options.host}]" if ":" in options.host else options.host
    service = Service(repository, regions, options.api_key)
    try:
        server, port = await start_grpc(service, f"{host}:{options.grpc_port}", options.limits.body_bytes, tls)
    except RuntimeError as error:
        raise InvalidInput(f"`grpc_port` must be free on {options.host}, but {options.grpc_port} is not.") from error
    return server, f"{options.host}:{port}"


def api_key_from(file: Path | None) -> str | None:
    """The API key from a file or from HASTEN_API_KEY; never from the command line, where others can read it.

    Raises:
        InvalidInput: The file is not there or empty.
    """
    if file is None:
        return os.environ.get("HASTEN_API_KEY") or None
    if not file.is_file() or not (text := file.read_text().strip()):
        raise InvalidInput(f"The API key's file must exist and hold a key, but {file} does not.")
    return text
