"""The model's own names for its layers, where the compiled file has lost them.

Exporters fold the transposition of a linear layer's weight, and with it its name; the layers' order and sizes stay.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hasten.diagnosis.work import Work

if TYPE_CHECKING:
    from torch.fx import GraphModule


def modules(graph: "GraphModule") -> list[tuple[str, int, int]]:
    """(module, elements of its weight, output channels) of every convolution and linear layer, in order."""
    from hasten.graph.parameters import tensor_of, weighted_layers

    found = []
    for node in weighted_layers(graph):
        weight: Any = node.args[1]
        if (value := tensor_of(graph, weight)) is not None:
            found.append((str(weight.target).removesuffix(".weight"), value.numel(), value.shape[0]))
    return found


def named(work: Work, known: Sequence[tuple[str, int, int]]) -> Work:
    """`work` with its weighted layers named as in `known`, if they are as many, of the same sizes, in that order."""
    weighted = [layer for layer in work.layers if layer.weights]
    # A bias may count among the constants of a layer.
    same = len(weighted) == len(known) and all(
        layer.weights in (elements, elements + width)
        for layer, (_, elements, width) in zip(weighted, known, strict=True)
    )
    labels = [label for label, *_ in known]
    if not same or len(set(labels)) < len(labels):
        return work
    label_of = {layer.name: label for layer, label in zip(weighted, labels, strict=True)}
    return replace(work, layers=tuple(replace(x, label=label_of.get(x.name, x.label)) for x in work.layers))
