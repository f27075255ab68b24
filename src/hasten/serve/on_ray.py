"""The same HTTP application on Ray Serve: replicas over the machines of a cluster. gRPC stays with `hasten serve`."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from hasten.errors import InvalidInput
from hasten.serve.models import Entry
from hasten.serve.repository import Repository
from hasten.serve.run import ServeOptions
from hasten.unreported import import_ray

_IN_FLIGHT = 256


def deploy(entries: Sequence[Entry], options: ServeOptions, *, address: str = "auto", copies: int = 1) -> str:
    """Deploy the application; returns its HTTP address. It stays until `undeploy` or the cluster ends.

    Args:
        entries: What to serve; every node must see the artifacts under the same paths.
        options: Where and how; `drain_s`, `limits` and `engine` hold for every copy.
        address: Of the cluster; "auto": the one this machine belongs to; "local": one is started here. A cluster that
            this process is connected to already is used as it is.
        copies: Replicas of the whole application, each with its own engine.

    Raises:
        InvalidInput: Ray is not installed, or an option cannot be had on Ray.
    """
    ray = import_ray("serve")
    if options.certificate is not None or options.shared_memory:
        raise InvalidInput("On Ray there is no TLS and no shared memory: put a proxy in front, or leave `--ray` out.")
    if copies < 1:
        raise InvalidInput(f"`copies` must be at least 1, but got {copies}.")
    if not ray.is_initialized():
        ray.init(address=None if address == "local" else address, log_to_driver=False)
    ray.serve.start(http_options={"host": options.host, "port": options.port})
    deployment = ray.serve.deployment(
        name="hasten",
        num_replicas=copies,
        max_ongoing_requests=_IN_FLIGHT,
        graceful_shutdown_timeout_s=options.drain_s,
        ray_actor_options={"num_cpus": options.engine.get("replicas") or 1},
    )(ray.serve.ingress(_builder(list(entries), options))(type("Hasten", (), {})))
    ray.serve.run(deployment.bind(), name="hasten", route_prefix="/")
    return f"http://{options.host}:{options.port}"


def undeploy() -> None:
    """Take the application away after it answered what it took, and leave the cluster."""
    ray = import_ray("serve")
    ray.serve.shutdown()
    ray.shutdown()


def serve_until(stop: threading.Event, start: Callable[[], str], ready: Callable[[str, str | None], None]) -> None:
    """Deploy, tell the address, and undeploy when `stop` is set."""
    ready(start(), None)
    try:
        stop.wait()
    finally:
        undeploy()


def _builder(entries: list[Entry], options: ServeOptions) -> Callable[[], Any]:
    def build() -> Any:  # runs on the replica
        from hasten.serve.app import App

        repository = Repository(entries, options.limits, options.engine)
        repository.open()
        return App(repository, api_key=options.api_key)

    return build
