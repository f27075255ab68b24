"""Why a layer takes the time it takes, in words from a short closed list."""

from dataclasses import dataclass

from hasten.diagnosis.ceilings import Ceilings
from hasten.diagnosis.profilers.record import CALL
from hasten.diagnosis.roofline import ELEMENT_BYTES, Floor
from hasten.diagnosis.rows import REST, Row, computes, is_conversion

NEAR_LIMIT = "near its limit"
MEMORY = "memory bound"
ODD_WIDTH = "odd width, next fast width is {}"
ISLAND = "Q/DQ island"
UNFUSED = "unfused"
NO_INTEGER_KERNEL = "unsupported int8 kernel"
LAUNCH = "launch bound"
OVERSUBSCRIBED = "thread-oversubscribed"
LAYOUT = "layout conversion"
SLOW_KERNEL = "kernel below the peak"
REASONS = (
    NEAR_LIMIT, MEMORY, ODD_WIDTH, ISLAND, UNFUSED, NO_INTEGER_KERNEL, LAUNCH, OVERSUBSCRIBED, LAYOUT, SLOW_KERNEL,
)  # fmt: skip

_NEAR = 0.6
# Bytes are the reason where moving them takes at least this share of the time, even from the last-level cache.
_MOVING = 1 / 3
# A kernel this short is mostly its start: the split among threads, the fetching of its code.
_SHORT_US, _LAUNCHES = 3.0, 4.0
_LAYOUT_KINDS = {"transpose", "reorder", "reorderinput", "reorderoutput", "shuffle_channels", "permute", "contiguous"}
_ELEMENTWISE = (
    "add", "mul", "sub", "div", "relu", "clip", "clamp", "sigmoid", "tanh", "gelu", "silu", "hardswish", "hardsigmoid",
    "hardtanh", "eltwise", "batch_norm", "batchnorm", "quickgelu", "biasgelu", "fastgelu", "erf", "pow", "leakyrelu",
    "qlinearadd", "qlinearmul", "qlinearleakyrelu", "dropout", "swish",
)  # fmt: skip


@dataclass(frozen=True)
class Situation:
    """What is known of a program beside its rows.

    Attributes:
        target: Its target's name.
        precision: What it was meant to compute in.
        limits: The machine's ceilings.
        oversubscribed: Whether it is faster with one thread.
        fast_widths: By layer label the neighbouring width that was measured to be faster.
    """

    target: str
    precision: str
    limits: Ceilings
    oversubscribed: bool
    fast_widths: dict[str, int]


def reason(row: Row, floor: Floor | None, situation: Situation) -> str:
    """The reason for one row; `floor` is None for nodes without arithmetic."""
    if row.label in (REST, CALL):
        return LAUNCH
    if is_conversion(row):
        return ISLAND
    if not row.layers and row.kind.lower() in _LAYOUT_KINDS:
        return LAYOUT
    node_us = situation.limits.node_us.get(situation.target, 1.0)
    short = row.time_us <= max(_SHORT_US, _LAUNCHES * node_us)
    weights = any(layer.weights for layer in row.layers)
    if situation.precision == "int8" and row.precision != "int8" and weights and not short:
        return NO_INTEGER_KERNEL  # before the limit: that of the float kernel is not the one that matters
    if floor is not None and floor.us >= _NEAR * row.time_us:
        return MEMORY if floor.memory_us > floor.compute_us else NEAR_LIMIT
    if short:
        return LAUNCH
    if floor is None:
        if row.kind.lower() in _ELEMENTWISE and not computes(row.kind):
            return UNFUSED
        return MEMORY if _traffic_us(row, situation.limits) >= _MOVING * row.time_us else SLOW_KERNEL
    width = next((situation.fast_widths[x.label] for x in row.layers if x.label in situation.fast_widths), None)
    if width is not None:
        return ODD_WIDTH.format(width)
    if situation.oversubscribed:
        return OVERSUBSCRIBED
    moving = max(floor.memory_us, floor.traffic_us)
    return MEMORY if moving > floor.compute_us and moving >= _MOVING * row.time_us else SLOW_KERNEL


def _traffic_us(row: Row, limits: Ceilings) -> float:
    """What moving a node's elements between it and the last-level cache takes."""
    return row.elements * ELEMENT_BYTES.get(row.precision, 4) / limits.cache_bytes_per_s * 1e6
