"""The width staircase around the widths that a model has: the slow layers timed alone at neighbouring widths."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from hasten.diagnosis.child import ProbeFailed, ask
from hasten.diagnosis.probes import write_probe
from hasten.diagnosis.work import Layer

_LAYERS = 6
_STEPS = (8, 16, 32, 64)
# A narrower width must save more than its share; a wider one must cost nothing.
_NARROWEST, _WIDEST = 0.85, 1.15
_SAVES, _FREE = 0.88, 0.95


def neighbours(width: int) -> list[int]:
    """Multiples of what kernels work in, a little below and above `width`."""
    near = {width // step * step for step in _STEPS} | {-(-width // step) * step for step in _STEPS}
    return sorted(n for n in near if n != width and max(1, _NARROWEST * width) <= n <= _WIDEST * width)


def staircase(layers: Sequence[Layer], runtime: str, precision: str) -> dict[str, dict[int, float]]:
    """Microseconds by width of the first layers that can be timed alone and have a neighbouring width, by label."""
    chosen = [(layer, layer.probe) for layer in layers if layer.probe and neighbours(layer.probe.width)][:_LAYERS]
    plan = [
        (layer, shape.at(width))
        for layer, shape in chosen
        for width in (shape.width, *neighbours(shape.width))
        if width % shape.group == 0 or shape.group == shape.width
    ]
    if not plan:
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch) / f"{index}.onnx" for index in range(len(plan))]
        for (_, shape), path in zip(plan, paths, strict=True):
            write_probe(shape, precision, path)
        try:
            times = ask({"command": "probes", "runtime": runtime, "paths": [*map(str, paths)], "precision": precision})
        except ProbeFailed:
            return {}
    found: dict[str, dict[int, float]] = {}
    for (layer, shape), time_us in zip(plan, times, strict=True):
        found.setdefault(layer.label, {})[shape.width] = time_us
    return found


def fast_width(width: int, times_us: dict[int, float]) -> int | None:
    """The neighbour that is worth moving to, the largest first: as fast though wider, or faster than its share."""
    own = times_us[width]
    for other in sorted(times_us, reverse=True):
        wider = other > width and times_us[other] < _FREE * own
        narrower = other < width and times_us[other] < _SAVES * own * other / width
        if wider or narrower:
            return other
    return None
