"""Which changes would bring most: each kind of change by its best version, the gain as its dry run was timed."""

from hasten.diagnosis.findings import Advice, Diagnosis
from hasten.diagnosis.versions import Version

_MOST = 3
# Below this a change is not worth an evening.
_WORTH = 1.05
_BASIS = "a dry run: the same graph, compiled the same way and timed in turns with the subject"


def advise(diagnosis: Diagnosis) -> list[Advice]:
    """At most three changes, the largest predicted gain first, one of each kind.

    None of them is judged for accuracy here; that is what `hasten run` does.
    """
    best: dict[str, Version] = {}
    for version in diagnosis.versions:
        if version.kind == "now" or version.name not in diagnosis.latencies:
            continue
        other = best.get(version.kind)
        if other is None or _gain(diagnosis, version) > _gain(diagnosis, other):
            best[version.kind] = version
    chosen = sorted(best.values(), key=lambda version: -_gain(diagnosis, version))
    worth = [v for v in chosen if _gain(diagnosis, v) >= _WORTH * _without(diagnosis, v)]
    return [_advice(diagnosis, version) for version in worth][:_MOST]


def _without(diagnosis: Diagnosis, version: Version) -> float:
    """The gain that is there without this change: that of the quickest version which the change was made to."""
    if version.kind == "runtime":
        return 1.0
    simpler = {"bf16": ("now", "runtime"), "int8": ("now", "runtime")}.get(
        version.kind, ("now", "runtime", "bf16", "int8")
    )
    known = [v for v in diagnosis.versions if v.kind in simpler and v.name in diagnosis.latencies]
    return max((_gain(diagnosis, v) for v in known), default=1.0)


def _gain(diagnosis: Diagnosis, version: Version) -> float:
    return diagnosis.latencies[version.name].ratio


def _advice(diagnosis: Diagnosis, version: Version) -> Advice:
    latency = diagnosis.latencies[version.name]
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
        "prune": f"prune every layer to half its width, in steps that kernels like: {version.name}",
    }[version.kind]
