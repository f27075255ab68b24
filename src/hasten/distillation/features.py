"""Intermediate features: which node of the student answers to which of the teacher, and how they are compared."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from hasten.distillation.losses import attention_map
from hasten.errors import InvalidInput, Unsupported
from hasten.graph.taps import values
from hasten.task import Inputs

FeatureLoss = Literal["hint", "attention"]
Pair = tuple[str, str]

_MOST_PAIRS = 4
_ATEN = torch.ops.aten
_ADDITIONS = {_ATEN.add.Tensor, _ATEN.add_.Tensor}
_AFTER_ADDITION = {_ATEN.relu.default, _ATEN.relu_.default, _ATEN.layer_norm.default, _ATEN.dropout.default}
_DROPOUT = {_ATEN.dropout.default, _ATEN.dropout_.default}
_ACTIVATIONS = {
    *(_ATEN.relu.default, _ATEN.relu_.default, _ATEN.gelu.default, _ATEN.silu.default, _ATEN.silu_.default),
    *(_ATEN.hardswish.default, _ATEN.hardswish_.default, _ATEN.hardtanh.default, _ATEN.hardtanh_.default),
    *(_ATEN.tanh.default, _ATEN.leaky_relu.default, _ATEN.elu.default, _ATEN.sigmoid.default, _ATEN.mish.default),
}


def pair_by_depth(student: GraphModule, teacher: GraphModule, example: Inputs) -> tuple[Pair, ...]:
    """At most four pairs of node names (student, teacher), from shallow to deep.

    Candidates are the ends of residual blocks, or the activations where there are none. Where both models have image
    features of the same resolutions, the last candidate of each resolution is paired; else candidates at the same
    relative depth.

    Raises:
        Unsupported: One of the graphs has no candidate.
    """
    shapes = [_candidates(graph, example) for graph in (student, teacher)]
    for graph, found in zip(("student", "teacher"), shapes, strict=True):
        if not found:
            raise Unsupported(f"`features` cannot be paired: the {graph} has no residual block and no activation.")
    last = [_last_of_each_resolution(found) for found in shapes]
    common = [resolution for resolution in last[0] if resolution in last[1]]
    if len(common) > 1:
        pairs = [(last[0][resolution], last[1][resolution]) for resolution in common]
        return tuple(pairs[-_MOST_PAIRS:])
    count = min(_MOST_PAIRS, *(len(found) for found in shapes))
    names = [[list(found)[math.ceil((i + 1) * len(found) / count) - 1] for i in range(count)] for found in shapes]
    return tuple(zip(*names, strict=True))


def pair_last(student: GraphModule, teacher: GraphModule) -> tuple[Pair, ...]:
    """One pair: what the last linear layer of each reads, before dropout.

    A few class scores say little about a sample; the features that they are read from say a lot, and cost one layer's
    input to keep. Source: Romero et al. 2015, "FitNets", with the last hidden layer as hint and guided layer.

    Raises:
        Unsupported: One of the graphs has no linear layer.
    """
    found = [_read_by_last_linear(graph) for graph in (student, teacher)]
    if not all(found):
        raise Unsupported("`features` 'last' must find a linear layer in both graphs, but one has none. Use 'auto'.")
    return ((str(found[0]), str(found[1])),)


def reads_features(graph: GraphModule) -> bool:
    """Whether the last linear layer reads one vector per sample, wider than what it answers (see `pair_last`)."""
    nodes = {node.name: node for node in graph.graph.nodes}
    read = nodes.get(_read_by_last_linear(graph))
    if read is None:
        return False
    layer = [node for node in graph.graph.nodes if node.target is _ATEN.linear.default][-1]
    values = read.meta.get("val"), layer.meta.get("val")
    shapes = [tuple(value.shape) for value in values if isinstance(value, Tensor)]
    return len(shapes) == 2 and len(shapes[0]) == 2 and int(shapes[0][1]) > int(shapes[1][-1])


class FeatureDistance(nn.Module):
    """The mean distance over pairs of features; projections, where widths differ, are parameters and are learned.

    Hints: Romero et al. 2015, "FitNets", eq. 3, with a 1x1 convolution or a linear layer from the student's width to
    the teacher's; none where the shapes are equal. Divided by the teacher's variance, so that layers weigh the same.
    Attention transfer: Zagoruyko and Komodakis 2017, "Paying more attention to attention", eq. 2 with p = 2.

    Args:
        shapes: Of every pair, the student's and the teacher's feature shape.
        kind: "hint" or "attention".

    Raises:
        InvalidInput: A pair whose features cannot be compared.
    """

    def __init__(self, shapes: Sequence[tuple[torch.Size, torch.Size]], kind: FeatureLoss) -> None:
        super().__init__()
        for student, teacher in shapes:
            if len(student) != len(teacher) or len(student) < 2:
                raise InvalidInput(
                    "`features` must pair values with the same number of dimensions, at least 2, but got "
                    f"{tuple(student)} and {tuple(teacher)}."
                )
            if kind == "attention" and len(student) < 4 and student[1] != teacher[1]:
                raise InvalidInput(
                    "`features` compared by attention must have the same number of positions, but got "
                    f"{tuple(student)} and {tuple(teacher)}. Use hints."
                )
        self.kind = kind
        projected = [kind == "hint" and _width(s) != _width(t) for s, t in shapes]
        self.projections = nn.ModuleList(
            _projection(s, t) if learned else nn.Identity() for (s, t), learned in zip(shapes, projected, strict=True)
        )

    def forward(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
        """The mean over the pairs, a scalar."""
        pairs = zip(self.projections, students, teachers, strict=True)
        distances = [self._distance(projection(student), teacher) for projection, student, teacher in pairs]
        return torch.stack(distances).mean()

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = _same_resolution(student, teacher)
        if self.kind == "attention":
            return (attention_map(student) - attention_map(teacher)).square().sum(1).mean()
        return F.mse_loss(student, teacher) / teacher.var(correction=0).clamp_min(1e-8)


def _read_by_last_linear(graph: GraphModule) -> str:
    """Name of the node; empty if there is no linear layer."""
    layers = [node for node in graph.graph.nodes if node.target is _ATEN.linear.default]
    if not layers:
        return ""
    read = layers[-1].args[0]
    while isinstance(read, Node) and read.target in _DROPOUT:
        read = read.args[0]
    return read.name if isinstance(read, Node) and read.op == "call_function" else ""


def _candidates(graph: GraphModule, example: Inputs) -> dict[str, torch.Size]:
    """Names and shapes of the nodes worth comparing, in order."""
    shapes = {
        name: value.shape
        for name, value in values(graph, example).items()
        if value.is_floating_point() and 2 <= value.ndim <= 4 and len(value) == len(example[0])
    }
    nodes = [node for node in graph.graph.nodes if node.name in shapes]
    additions = [node for node in nodes if node.target in _ADDITIONS and _adds_features(node, shapes)]
    found = [_after(node) for node in additions] or [node for node in nodes if node.target in _ACTIVATIONS]
    return {node.name: shapes[node.name] for node in found if node.name in shapes}


def _adds_features(node: Node, shapes: dict[str, torch.Size]) -> bool:
    operands = [operand for operand in node.args[:2] if isinstance(operand, Node)]
    return len(operands) == 2 and all(shapes.get(operand.name) == shapes[node.name] for operand in operands)


def _after(node: Node) -> Node:
    """The activation or norm that ends the block, if the sum goes nowhere else."""
    while len(node.users) == 1 and next(iter(node.users)).target in _AFTER_ADDITION:
        node = next(iter(node.users))
    return node


def _last_of_each_resolution(shapes: dict[str, torch.Size]) -> dict[tuple[int, ...], str]:
    return {tuple(shape[2:]): name for name, shape in shapes.items() if len(shape) == 4}


def _width(shape: torch.Size) -> int:
    return shape[1] if len(shape) == 4 else shape[-1]


def _projection(student: torch.Size, teacher: torch.Size) -> nn.Module:
    if len(student) == 4:
        return nn.Conv2d(_width(student), _width(teacher), 1, bias=False)
    return nn.Linear(_width(student), _width(teacher))


def _same_resolution(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Pool the finer of two image features to the resolution of the coarser."""
    if student.ndim != 4 or student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    height, width = (min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True))
    return F.adaptive_avg_pool2d(student, (height, width)), F.adaptive_avg_pool2d(teacher, (height, width))
