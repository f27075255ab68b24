"""The width staircase: which widths of a layer are worth having, given how long it takes at each of them."""

from collections.abc import Mapping


def worthwhile(latency_ms: Mapping[int, float]) -> tuple[int, ...]:
    """Widths that are faster than every wider one, ascending.

    Runtimes work in blocks of channels, so latency falls in steps and can even rise when channels leave. A width that
    is not worthwhile has a wider one that is as fast, which keeps more of the model for nothing.

    Args:
        latency_ms: Measured latency of the layer by its width, the original width among them.
    """
    found: list[int] = []
    best = float("inf")
    for width in sorted(latency_ms, reverse=True):
        if latency_ms[width] < best:
            best = latency_ms[width]
            found.append(width)
    return tuple(reversed(found))
