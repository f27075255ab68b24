"""The `serve` command; `register` adds it to the `hasten` command."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add `serve`."""
    app.command("serve")(serve_command)


def serve_command(
    artifacts: Annotated[
        list[str],
        typer.Argument(metavar="ARTIFACT...", help="PATH or NAME[:VERSION]=PATH; A+B: on two devices."),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="HTTP port; 0: any free one.", min=0, max=65535)] = 8000,
    grpc_port: Annotated[int, typer.Option(help="gRPC port; 0: any free one.", min=0, max=65535)] = 8001,
    grpc: Annotated[bool, typer.Option(help="Serve gRPC too.")] = True,
    bound_ms: Annotated[float | None, typer.Option(help="Refuse what would be answered later than this.")] = None,
    timeout_s: Annotated[float, typer.Option(help="Fail what has no answer by then.")] = 60.0,
    queue_rows: Annotated[int, typer.Option(help="Most rows that may wait per model.")] = 10_000,
    body_mb: Annotated[float, typer.Option(help="Largest request body in MB.")] = 64.0,
    replicas: Annotated[int, typer.Option(help="Batches at a time; 0: by the cores.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads inside one call; 0: by the cores.")] = 0,
    processes: Annotated[bool, typer.Option("--processes", help="Every replica in a process of its own.")] = False,
    pinned: Annotated[bool, typer.Option(help="Every replica keeps to its cores.")] = True,
    api_key_file: Annotated[Path | None, typer.Option(help="File with the API key; or set HASTEN_API_KEY.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM certificate chain for TLS.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM private key for TLS.")] = None,
    shared_memory: Annotated[
        bool, typer.Option("--shared-memory", help="Clients here may pass shared memory.")
    ] = False,
    ray: Annotated[str | None, typer.Option(help="On Ray Serve, HTTP only: an address, auto or local.")] = None,
    copies: Annotated[int, typer.Option(help="Copies of the application on Ray.")] = 1,
    drain_s: Annotated[float, typer.Option(help="Time for taken requests at the end.")] = 30.0,
) -> None:
    """Serve artifacts over REST and gRPC, with metrics.

    The protocol is the Open Inference Protocol v2; a status page is at /.
    """
    from hasten.serve.models import ServeLimits
    from hasten.serve.run import ServeOptions, api_key_from, parse_entries, serve

    bound_s = None if bound_ms is None else bound_ms / 1e3
    limits = ServeLimits(bound_s, timeout_s, queue_rows, int(body_mb * 2**20))
    options = ServeOptions(
        host=host,
        port=port,
        grpc_port=grpc_port if grpc else None,
        api_key=api_key_from(api_key_file),
        certificate=certificate,
        key=key,
        shared_memory=shared_memory,
        drain_s=drain_s,
        limits=limits,
        engine={"replicas": replicas, "threads": threads, "processes": processes, "pinned": pinned},
    )

    def ready(http: str, rpc: str | None) -> None:
        typer.echo(f"serving on {http}" + (f" and gRPC on {rpc}" if rpc else ""))

    entries = parse_entries(artifacts)
    if ray is None:
        serve(entries, options, ready)
        return
    import signal
    import threading

    from hasten.serve.on_ray import deploy, serve_until

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    serve_until(stop, lambda: deploy(entries, options, address=ray, copies=copies), ready)
