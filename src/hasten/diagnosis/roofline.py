"""The least time a layer can take here: its arithmetic at the peak or its bytes at the bandwidth, if that is longer."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from hasten.diagnosis.ceilings import Ceilings, Peak
from hasten.diagnosis.work import Layer

Observation = tuple[tuple[Layer, ...], str, float, str, int]
"""Layers computed together, the precision, microseconds, by which program, and elements of all its weights."""

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
# Times below this are a handful of the profilers' ticks: too coarse to correct a ceiling by, or to beat a floor.
RELIABLE_US = 8.0


@dataclass(frozen=True)
class Floor:
    """The least time of one layer in one precision, in microseconds.

    Attributes:
        compute_us: Its multiply-accumulates at the peak.
        memory_us: What cannot have stayed in the private caches, at the bandwidth of the cache or memory it is in.
        traffic_us: All its bytes at the bandwidth of the last-level cache: not a bound, but what its bytes cost
            where its operands arrive from the layer before.
    """

    compute_us: float
    memory_us: float
    traffic_us: float

    @property
    def us(self) -> float:
        """The bound."""
        return max(self.compute_us, self.memory_us)


def floor_of(layer: Layer, precision: str, limits: Ceilings, all_weights: int) -> Floor:
    """The floor of `layer` in `precision`.

    The weights of the whole network pass by in every call, so the share of them that exceeds a cache comes from beyond
    it. Activations come from the layer before: only what exceeds the private caches must have left them.

    Args:
        layer: The layer.
        precision: A precision in `limits.peaks`.
        limits: The machine's ceilings.
        all_weights: Elements of all weights of the network.
    """
    size = ELEMENT_BYTES[precision]
    total = max(1, all_weights * size)
    beyond_private = max(0.0, 1 - limits.private_bytes / total)
    beyond_shared = max(0.0, 1 - limits.shared_bytes / total)
    from_dram = layer.weights * size * beyond_shared
    from_cache = layer.weights * size * beyond_private - from_dram + _excess(layer.activations * size, limits)
    memory = from_dram / limits.dram_bytes_per_s + max(0.0, from_cache) / limits.cache_bytes_per_s
    return Floor(
        compute_us=2 * layer.macs / limits.peaks[precision].ops_per_s * 1e6,
        memory_us=memory * 1e6,
        traffic_us=(layer.weights + layer.activations) * size / limits.cache_bytes_per_s * 1e6,
    )


def _excess(size_bytes: int, limits: Ceilings) -> float:
    return max(0, size_bytes - limits.private_bytes)


def ceiling_us(layers: Iterable[Layer], precision: str, limits: Ceilings, all_weights: int) -> float:
    """The least time of a whole network: all floors and the cheapest call."""
    return sum(floor_of(x, precision, limits, all_weights).us for x in layers) + min(limits.call_us.values())


def raised(limits: Ceilings, seen: Iterable[Observation]) -> tuple[Ceilings, list[str]]:
    """Ceilings that nothing measured exceeds, and in words what exceeded the probes.

    A probe can miss the peak: it met another tenant, or a kernel saves arithmetic (Winograd). What was reached is
    reachable, so it becomes the ceiling.

    Args:
        limits: The ceilings as probed.
        seen: What was measured.
    """
    words: dict[str, str] = {}
    for layers, precision, time_us, where, all_weights in seen:
        if not layers or time_us < RELIABLE_US or precision not in limits.peaks:
            continue
        floors = [floor_of(layer, precision, limits, all_weights) for layer in layers]
        label = " + ".join(layer.label for layer in layers) if len(layers) < 3 else f"{len(layers)} layers together"
        if sum(f.compute_us for f in floors) > time_us:
            reached = sum(2 * layer.macs for layer in layers) / time_us * 1e6
            peaks = dict(limits.peaks) | {precision: Peak(reached, f"layer {label} in {where}")}
            limits = replace(limits, peaks=peaks)
            words[precision] = f"{label} in {where} reached {reached / 1e9:.0f} Gop/s in {precision}, above the probes"
        if (memory := sum(f.memory_us for f in floors)) > time_us:
            factor = memory / time_us
            limits = replace(
                limits,
                cache_bytes_per_s=limits.cache_bytes_per_s * factor,
                dram_bytes_per_s=limits.dram_bytes_per_s * factor,
            )
            words["memory"] = f"{label} in {where} moved its bytes {factor:.2f} times faster than the probes"
    return limits, list(words.values())
