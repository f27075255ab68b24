"""Which changes would bring most: each kind of change by its best version, the gain as its dry run was timed."""

from collections.abc import Mapping, Sequence

from hasten.diagnosis.findings import Advice
from hasten.diagnosis.versions import Version
from hasten.measure.latency import Latency

_MOST = 3
# Below this a change is not worth an evening.
_WORTH = 1.05
_BASIS = "a dry run: the same graph, compiled the same way and timed in turns with the subject"


def advise(versions: Sequence[Version], latencies: Mapping[str, Latency]) -> list[Advice]:
    """At most three changes, the largest predicted gain first, one of each kind.

    None of them is judged for accuracy here; that is what `hasten run` does.

    Args:
        versions: All versions, the subject as it is first.
        latencies: By version name, those that ran; ratios are to the first version.
    """
    ran = [version for version in versions if version.name in latencies]
    gains = {version.name: latencies[version.name].ratio for version in ran}
    best: dict[str, Version] = {}
    for version in ran:
        other = best.get(version.kind)
        if version.kind != "now" and (other is None or gains[version.name] > gains[other.name]):
            best[version.kind] = version
    chosen = sorted(best.values(), key=lambda version: -gains[version.name])
    worth = [v for v in chosen if gains[v.name] >= _WORTH * _without(v, ran, gains)]
    return [_advice(version, latencies[version.name]) for version in worth][:_MOST]


def _without(version: Version, ran: Sequence[Version], gains: Mapping[str, float]) -> float:
    """The gain that is there without this change: that of the quickest version which the change was made to."""
    if version.kind == "runtime":
        return 1.0
    simpler = {"bf16": ("now", "runtime"), "int8": ("now", "runtime")}.get(
        version.kind, ("now", "runtime", "bf16", "int8")
    )
    return max((gains[v.name] for v in ran if v.kind in simpler), default=1.0)


def _advice(version: Version, latency: Latency) -> Advice:
    return Advice(
        kind=version.kind,
        words=_words(version),
        recipe=version.recipe.to_yaml(),
        predicted_gain=latency.ratio,
        low=latency.ratio_low,
        high=latency.ratio_high,
        basis=_BASIS,
    )


def _words(version: Version) -> str:
    return {
        "runtime": f"run it in {version.name}",
        "bf16": f"compute in bf16: {version.name}",
        "int8": f"quantize to int8: {version.name}",
        "threads": f"use one thread: {version.name}",
        "prune": f"prune every layer to half its width, in steps that kernels like: {version.name.split(', half')[0]}",
    }[version.kind]
