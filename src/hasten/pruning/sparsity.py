"""What zeros among the weights are worth: where they pay, and where they give nothing."""

import zlib
from dataclasses import dataclass

import numpy as np
from torch.fx import GraphModule

from hasten.graph.channels import attribute
from hasten.pruning.masks import weight_names

_WHERE = (
    "A 2:4 pattern pays on the sparse tensor cores of GPUs from Ampere on.",
    "Any zero pays in FPGA logic (no adder for it) and in the size of a compressed file.",
    "No zero pays on a CPU in ONNX Runtime, OpenVINO or TorchInductor: they multiply by it.",
)


@dataclass(frozen=True)
class LayerSparsity:
    """Zeros of one weight tensor.

    Attributes:
        name: Parameter.
        weights: How many it has.
        zeros: How many of them are zero.
        two_of_four: Whether every run of 4 inputs holds at most 2 weights that are not zero.
    """

    name: str
    weights: int
    zeros: int
    two_of_four: bool


@dataclass(frozen=True)
class SparsityReport:
    """Zeros of a graph's weights; says nothing about speed, which only a measurement can.

    Attributes:
        layers: One entry per weight tensor.
        size_bytes: Of all weights.
        compressed_bytes: Of all weights after zlib at level 6, measured.
    """

    layers: tuple[LayerSparsity, ...]
    size_bytes: int
    compressed_bytes: int

    @property
    def sparsity(self) -> float:
        """Share of zeros among all weights."""
        return sum(x.zeros for x in self.layers) / max(sum(x.weights for x in self.layers), 1)

    def __str__(self) -> str:
        """The report as text."""
        rows = [f"{x.zeros / x.weights:6.1%}  {'2:4' if x.two_of_four else '   '}  {x.name}" for x in self.layers]
        sizes = f"weights: {self.size_bytes} bytes, {self.compressed_bytes} compressed; {self.sparsity:.1%} zeros"
        return "\n".join([*rows, sizes, *_WHERE])


def sparsity_report(graph: GraphModule) -> SparsityReport:
    """Count the zeros of every weight tensor and compress the weights once."""
    layers, size, compressed = [], 0, 0
    for name in weight_names(graph):
        weight = attribute(graph, name).detach().float().cpu().numpy()
        layers.append(LayerSparsity(name, weight.size, int((weight == 0).sum()), _two_of_four(weight)))
        size += weight.nbytes
        compressed += len(zlib.compress(weight.tobytes(), 6))
    return SparsityReport(tuple(layers), size, compressed)


def _two_of_four(weight: np.ndarray) -> bool:
    rows = np.moveaxis(weight, 1, -1)
    whole = rows.shape[-1] // 4 * 4
    if whole == 0:
        return False
    runs = rows[..., :whole].reshape(*rows.shape[:-1], -1, 4)
    return bool(((runs != 0).sum(-1) <= 2).all())
