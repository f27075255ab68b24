"""What a diagnosis holds, and its plain form for JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hasten.diagnosis.ceilings import Ceilings
from hasten.diagnosis.profilers.record import Profile
from hasten.diagnosis.reasons import Situation, reason
from hasten.diagnosis.roofline import RELIABLE_US, Floor, floor_of
from hasten.diagnosis.rows import Row
from hasten.diagnosis.versions import Maker, Version
from hasten.diagnosis.work import Layer
from hasten.measure.latency import Latency
from hasten.recipe import name_of

SCHEMA = 1


@dataclass(frozen=True)
class Patient:
    """What is examined.

    Attributes:
        name: What it is called.
        versions: Compiled versions of one model.
        inputs: One batch.
        maker: Who can make more versions; None for an artifact.
        modules: The model's own names of its layers with weights, from `labels.modules`.
    """

    name: str
    versions: list[Version]
    inputs: list[np.ndarray]
    maker: Maker | None
    modules: Sequence[tuple[str, int, int]] = ()


@dataclass(frozen=True)
class Measured:
    """One version timed as a whole and node by node; `all_weights` are the elements of its own weights."""

    version: Version
    latency: Latency
    profile: Profile
    rows: tuple[Row, ...]
    all_weights: int

    @property
    def whole_us(self) -> float:
        """Median of a plain call, in turns with those under the profiler."""
        return self.profile.plain_us

    @property
    def coverage(self) -> float:
        """Sum of the nodes over the whole call as profiled: 1 where the profiler explains all of it."""
        return self.profile.sum_us / self.whole_us


@dataclass(frozen=True)
class Advice:
    """A change, how to make it, and what it would bring.

    Attributes:
        kind: "runtime", "bf16", "int8", "threads" or "prune".
        words: What to do, in one line.
        recipe: For `hasten apply`, as YAML.
        predicted_gain: Times faster than the subject as it is.
        low, high: 95% interval of the timing that the prediction is made from.
        basis: What the prediction is made from.
    """

    kind: str
    words: str
    recipe: str
    predicted_gain: float
    low: float
    high: float
    basis: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything the doctor found.

    Attributes:
        subject: Name of the task or artifact.
        inputs: Shapes that it ran on.
        limits: The machine's ceilings, raised where a layer exceeded them.
        beaten: In words, which layers exceeded which probe.
        layers: The model's layers.
        all_weights: Elements of all their weights.
        measured: Every version that was profiled.
        latencies: By version name; ratios are to the first version, the subject as it is.
        versions: All versions, those that failed too.
        ceilings_us: By precision, the least time of the whole network here.
        fast_widths: By version name and layer label, the faster neighbouring width.
        oversubscribed: Whether the quickest version is faster with one thread.
        unprofiled: By version name, why its nodes could not be timed.
        advice: At most three changes, the best first.
    """

    subject: str
    inputs: list[list[int]]
    limits: Ceilings
    beaten: list[str]
    layers: Sequence[Layer]
    all_weights: int
    measured: list[Measured]
    latencies: Mapping[str, Latency]
    versions: list[Version]
    ceilings_us: Mapping[str, float]
    fast_widths: Mapping[str, Mapping[str, int]]
    oversubscribed: bool
    unprofiled: Mapping[str, str]
    advice: list[Advice] = field(default_factory=list)

    @property
    def now(self) -> str:
        """The name of the version that gains are counted from."""
        return self.versions[0].name

    def floor(self, row: Row, all_weights: int) -> Floor | None:
        """The floor of a row in the precision its kernel has, or None without arithmetic.

        A time of a few of the profiler's ticks can come out below it; then it counts as reached.
        """
        precision = row.precision if row.precision in self.limits.peaks else "fp32"
        floors = [floor_of(layer, precision, self.limits, all_weights) for layer in row.layers]
        if not floors:
            return None
        floor = Floor(*(sum(getattr(f, name) for f in floors) for name in ("compute_us", "memory_us", "traffic_us")))
        if row.time_us >= min(floor.us, RELIABLE_US):
            return floor
        return Floor(min(floor.compute_us, row.time_us), min(floor.memory_us, row.time_us), floor.traffic_us)

    def situation(self, measured: Measured) -> Situation:
        """What the reasons of a version's rows depend on."""
        version = measured.version
        best = min(self.measured, key=lambda m: m.latency.median_ms)
        return Situation(
            target=name_of(version.target),
            precision=version.precision,
            limits=self.limits,
            oversubscribed=self.oversubscribed and measured is best,
            fast_widths=dict(self.fast_widths.get(version.name, {})),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema": SCHEMA,
            "subject": self.subject,
            "inputs": self.inputs,
            "machine": self.limits.to_json(),
            "above_the_probes": self.beaten,
            "now": self.now,
            "ceilings_ms": {p: us / 1e3 for p, us in self.ceilings_us.items()},
            "latency": {name: latency.to_json() for name, latency in self.latencies.items()},
            "failed": {v.name: v.failure for v in self.versions if v.failure} | dict(self.unprofiled),
            "layers": [self._layer(layer) for layer in self.layers],
            "versions": [self._version(measured) for measured in self.measured],
            "oversubscribed": self.oversubscribed,
            "advice": [vars(advice) for advice in self.advice],
        }

    def _layer(self, layer: Layer) -> dict[str, Any]:
        floors = {p: floor_of(layer, p, self.limits, self.all_weights).us for p in self.limits.peaks}
        return {
            "label": layer.label,
            "kind": layer.kind,
            "operations": 2 * layer.macs,
            "weight_elements": layer.weights,
            "activation_elements": layer.activations,
            "width": layer.probe.width if layer.probe else None,
            "floor_us": floors,
        }

    def _version(self, measured: Measured) -> dict[str, Any]:
        situation = self.situation(measured)
        rows = []
        for row in measured.rows:
            floor = self.floor(row, measured.all_weights)
            rows.append(
                {
                    "label": row.label,
                    "kind": row.kind,
                    "kernel": row.detail,
                    "precision": row.precision,
                    "layers": [layer.label for layer in row.layers],
                    "time_us": row.time_us,
                    "share": row.time_us / measured.whole_us,
                    "floor_us": floor.us if floor else None,
                    "achieved": floor.us / row.time_us if floor and row.time_us else None,
                    "reason": reason(row, floor, situation),
                }
            )
        return {
            "name": measured.version.name,
            "precision": measured.version.precision,
            "recipe": measured.version.recipe.to_yaml(),
            "whole_us": measured.whole_us,
            "sum_of_layers_us": measured.profile.sum_us,
            "sum_over_whole": measured.coverage,
            "profiled_whole_us": measured.profile.profiled_us,
            "profiler": measured.profile.note,
            "rows": rows,
        }
