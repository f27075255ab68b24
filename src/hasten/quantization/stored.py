"""Read the integers that stand behind a dequantize operator in the place of a weight or bias."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from hasten.graph.parameters import tensor_of
from hasten.quantization.torchao import DEQUANTIZE_PER_CHANNEL


@dataclass(frozen=True)
class Stored:
    """A constant as integers in blocks that share a scale.

    Attributes:
        integers: The buffer in the graph, dimension 0 are the blocks; changing it changes the graph.
        scale: float32, [blocks].
        low, high: Range of the integers.
        shape: Of the constant as its reader sees it; dimension 0 are its channels.
    """

    integers: Tensor
    scale: Tensor
    low: int
    high: int
    shape: torch.Size

    @property
    def length(self) -> int:
        """Values in a block."""
        return self.integers[0].numel()

    def scales(self) -> Tensor:
        """The scale of every value, [channels, values of a channel]."""
        return self.scale[:, None].expand(-1, self.length).reshape(self.shape[0], -1)

    def dequantize(self) -> Tensor:
        """float32, of `shape`."""
        return (self.integers.reshape(self.shape[0], -1) * self.scales()).reshape(self.shape)


def stored(graph: GraphModule, node: Any) -> Stored | None:
    """What `node` stands for if it is a dequantized constant (per channel, or per group and reshaped); else None."""
    shape = None
    if isinstance(node, Node) and node.target is torch.ops.aten.reshape.default:
        node, shape = node.args[0], node.args[1]
    if not isinstance(node, Node) or node.target is not DEQUANTIZE_PER_CHANNEL or node.args[3] != 0:
        return None
    integers, scale = tensor_of(graph, node.args[0]), tensor_of(graph, node.args[1])
    if integers is None or scale is None:
        return None
    low, high = int(node.args[4]), int(node.args[5])  # type: ignore[arg-type]
    return Stored(integers, scale, low, high, integers.shape if shape is None else torch.Size(shape))
