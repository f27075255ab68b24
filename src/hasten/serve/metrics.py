"""Prometheus metrics of a server, read from the engines' own counters when asked for."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from hasten.serve.repository import Repository

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class _Collector:
    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def collect(self) -> Iterable[Metric]:
        """Yield every metric family."""
        names = ["model", "version"]
        requests = CounterMetricFamily("hasten_requests", "Requests by outcome.", labels=[*names, "outcome"])
        rows = CounterMetricFamily("hasten_rows", "Rows answered.", labels=names)
        seconds = CounterMetricFamily("hasten_request_seconds", "Time of answered requests.", labels=names)
        queue = GaugeMetricFamily("hasten_queue_rows", "Rows waiting.", labels=names)
        latency = GaugeMetricFamily("hasten_latency_seconds", "Recent latency.", labels=[*names, "quantile"])
        resent = CounterMetricFamily("hasten_resent", "Pieces sent again after a device failed.", labels=names)
        busy = CounterMetricFamily("hasten_device_busy_seconds", "Busy time of all lanes.", labels=[*names, "device"])
        batches = CounterMetricFamily("hasten_device_batches", "Batches run.", labels=[*names, "device"])
        alive = GaugeMetricFamily("hasten_device_ready", "1 if ready.", labels=[*names, "device"])
        for model in self._repository.models():
            key, found, counters = [model.entry.name, model.entry.version], model.engine.statistics(), model.counters
            for outcome in ("success", "failed", "rejected"):
                requests.add_metric([*key, outcome], getattr(counters, outcome))
            rows.add_metric(key, counters.rows)
            seconds.add_metric(key, counters.success_s)
            queue.add_metric(key, found["queue_rows"])
            resent.add_metric(key, found["resent"])
            for name, quantile in (("p50", "0.5"), ("p90", "0.9"), ("p99", "0.99")):
                if found["latency_ms"][name] is not None:
                    latency.add_metric([*key, quantile], found["latency_ms"][name] / 1e3)
            for device in found["devices"]:
                busy.add_metric([*key, device["name"]], device["busy_s"])
                batches.add_metric([*key, device["name"]], device["batches"])
                alive.add_metric([*key, device["name"]], device["state"] == "ready")
        yield from (requests, rows, seconds, queue, latency, resent, busy, batches, alive)


def render(repository: Repository) -> bytes:
    """The metrics as Prometheus text."""
    registry = CollectorRegistry()
    registry.register(_Collector(repository))
    text: bytes = generate_latest(registry)
    return text
