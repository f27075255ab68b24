"""Bring the nodes that runtimes executed, under names of their own, together with the layers of the model."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hasten.diagnosis.profilers.record import NodeTime, Profile
from hasten.diagnosis.work import BETWEEN, COMPUTE, Layer, Work

_COMPUTE_KINDS = (
    "conv", "matmul", "gemm", "fullyconnected", "mm", "integertofloat", "einsum", "lstm", "gru", "rnn",
    "attention", "deconvolution", "qlinearconv", "sdpa", "scaled_dot_product", "subgraph",
)  # fmt: skip

REST = "between the layers"
# What is less than this is the profiler's own uncertainty.
_LEAST_REST = 0.02


@dataclass(frozen=True)
class Row:
    """Nodes of one program that did one layer's work, or one node without a layer.

    Attributes:
        label: The layer's label, or the runtime's name of the node.
        kind: The runtime's operator type.
        layers: The layers it computes; empty for what only moves or converts, or has no arithmetic to speak of.
        source: ONNX operator that it comes from; empty for what the runtime put in itself.
        time_us: Time per call.
        precision: Arithmetic of its kernel.
        detail: The kernel, where the runtime tells.
        elements: How many the node reads and writes; 0 if unknown.
    """

    label: str
    kind: str
    layers: tuple[Layer, ...]
    source: str
    time_us: float
    precision: str
    detail: str = ""
    elements: int = 0


def computes(kind: str) -> bool:
    """Whether a runtime's operator type does matrix arithmetic."""
    # "linear" is a layer of eager; inside a longer word it is a rounding (QuantizeLinear) or an addition (QLinearAdd).
    low = kind.lower()
    return low == "linear" or (low != "convert" and any(word in low for word in _COMPUTE_KINDS))


def rows_of(profile: Profile, work: Work, reference: Sequence[Layer]) -> list[Row]:
    """One row for each executed node, and one for the time of the whole call that no node accounts for.

    Args:
        profile: What the runtime executed.
        work: The compiled file's own nodes; for eager those of the float file.
        reference: The layers as the float file has them: the same layers under other names after quantization.
    """
    renamed = same_layers(work.layers, reference)
    if not any(node.origins for node in profile.nodes):
        return _with_rest(_in_order(profile, reference), profile)
    owner = _owners(profile, work)
    rows = []
    for node in profile.nodes:
        found = tuple(renamed[name] for name in owner[node.name] if name in renamed)
        origins = [origin for name in node.origins if (origin := work.origin(name))]
        source = work.kinds[origins[-1]] if origins else ""
        rows.append(_row(node, found, source))
    return _with_rest(rows, profile)


def _with_rest(rows: list[Row], profile: Profile) -> list[Row]:
    rest_us = profile.plain_us - profile.sum_us
    if rest_us < _LEAST_REST * profile.plain_us:
        return rows
    return [*rows, Row(REST, "runtime", (), "", rest_us, "")]


def same_layers(layers: Sequence[Layer], reference: Sequence[Layer]) -> dict[str, Layer]:
    """The reference's layer for each layer's name: both files list the same arithmetic in the same order.

    Labels, and thereby widths and weights, are the reference's where all agree; else every layer keeps its own.
    """
    if [layer.macs for layer in layers] == [layer.macs for layer in reference]:
        return {own.name: replace(other, probe=own.probe or other.probe)
                for own, other in zip(layers, reference, strict=True)}  # fmt: skip
    return {layer.name: layer for layer in layers}


def _owners(profile: Profile, work: Work) -> dict[str, list[str]]:
    """Names of the layers that each executed node computes; a layer is computed once."""
    known = {layer.name for layer in work.layers}
    owners: dict[str, list[str]] = defaultdict(list)
    taken: set[str] = set()
    for node in profile.nodes:  # first those that are named directly
        for name in node.origins:
            origin = work.origin(name)
            if origin in known and origin not in taken and computes(node.kind):
                owners[node.name].append(origin)
                taken.add(origin)
    for node in profile.nodes:  # then those that are named after what was merged into them
        if owners[node.name] or not computes(node.kind):
            continue
        for name in node.origins:
            layer = _layer_before(work.origin(name), work, known - taken)
            if layer:
                owners[node.name].append(layer)
                taken.add(layer)
                break
    return owners


def _layer_before(origin: str | None, work: Work, free: set[str]) -> str | None:
    """The nearest layer in `free` that leads to `origin` through nodes without arithmetic."""
    waiting, seen = [origin], set()
    while waiting:
        name = waiting.pop(0)
        if name is None or name in seen:
            continue
        seen.add(name)
        if name in free:
            return name
        if work.kinds[name] not in COMPUTE:
            waiting += work.before[name]
    return None


def _in_order(profile: Profile, reference: Sequence[Layer]) -> list[Row]:
    """Rows of a program whose names say nothing: its products are the model's, in the same order, if as many.

    Fused attention counts as two: query by key, and weights by value.
    """
    counts = [
        (2 if "attention" in node.kind or "sdpa" in node.kind.lower() else 1) if computes(node.kind) else 0
        for node in profile.nodes
    ]
    left = list(reference) if sum(counts) == len(reference) else []
    rows = []
    for node, count in zip(profile.nodes, counts, strict=True):
        found, left = tuple(left[:count]), left[count:]
        rows.append(_row(node, found, "model"))
    return rows


def _row(node: NodeTime, layers: tuple[Layer, ...], source: str) -> Row:
    label = " + ".join(layer.label for layer in layers) or node.name
    return Row(label, node.kind, layers, source, node.time_us, node.precision, node.detail, node.elements)


def is_conversion(row: Row) -> bool:
    """Whether a node only turns floats into integers or back."""
    return not row.layers and (row.source in BETWEEN or row.kind in {*BETWEEN, "FakeQuantize"})
