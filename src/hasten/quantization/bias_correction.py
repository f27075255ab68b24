"""Bias correction: give every integer layer back the mean output that rounding its weights and inputs took away.

Rounding is nearly unbiased weight by weight, but activations after a clamp are all positive, so a layer sums its
weights' errors into a constant shift of each output channel. The shift is measured on calibration samples and added to
the bias. Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
section 4.2, in the empirical form of its appendix D: layer by layer, each with the layers before it corrected.
"""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from hasten.graph.parameters import tensor_of
from hasten.quantization import operators
from hasten.quantization.torchao import DEQUANTIZE_PER_CHANNEL
from hasten.task import Inputs

_BIAS_ARGUMENT = 2


def correct_bias(quantized: GraphModule, reference: GraphModule, inputs: Inputs) -> None:
    """Change the biases of `quantized` in place.

    Args:
        quantized: Graph with Q/DQ, made from `reference`, whose layers keep their names.
        reference: The same graph in float.
        inputs: One batch of calibration samples; a few dozen are enough, since every position of every sample counts.
    """
    layers = {node.name for node in quantized.graph.nodes if _is_layer(node) and _bias(quantized, node)}
    means = _LayerMeans(reference, layers)
    with torch.no_grad():
        means.run(*inputs)
        _Corrector(quantized, means.found).run(*inputs)


class _LayerMeans(Interpreter):
    """Runs a graph and keeps the mean output per channel of the layers named."""

    def __init__(self, graph: GraphModule, layers: set[str]) -> None:
        super().__init__(graph)
        self._layers = layers
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        """Run a node, and keep its mean if it is a layer that is asked for."""
        result = super().run_node(n)
        if n.name in self._layers:
            self.found[n.name] = _channel_mean(n, result)
        return result


class _Corrector(Interpreter):
    """Runs a quantized graph and corrects every layer as it passes, so that later layers see corrected inputs."""

    def __init__(self, graph: GraphModule, means: dict[str, Tensor]) -> None:
        super().__init__(graph)
        self._graph, self._means = graph, means

    def run_node(self, n: Node) -> Any:
        """Run a node; a layer is run again once its bias is corrected."""
        result = super().run_node(n)
        if n.name not in self._means:
            return result
        bias = _bias(self._graph, n)
        assert bias is not None
        values, scale = bias
        shift = self._means[n.name] - _channel_mean(n, result)
        values += shift if scale is None else torch.round(shift / scale).to(values.dtype)
        # An integer bias was dequantized before it was corrected.
        argument = n.args[_BIAS_ARGUMENT]
        assert isinstance(argument, Node)
        self.env[argument] = values if scale is None else values * scale
        return super().run_node(n)


def _is_layer(node: Node) -> bool:
    return node.target in operators.CONVOLUTIONS or node.target is torch.ops.aten.linear.default


def _bias(graph: GraphModule, layer: Node) -> tuple[Tensor, Tensor | None] | None:
    """The bias of an integer layer, [channels], and its scale if it is integer too; None for any other layer."""
    weight = layer.args[1]
    if not isinstance(weight, Node) or weight.target is not DEQUANTIZE_PER_CHANNEL or len(layer.args) <= _BIAS_ARGUMENT:
        return None
    node = layer.args[_BIAS_ARGUMENT]
    if isinstance(node, Node) and node.target is DEQUANTIZE_PER_CHANNEL:
        integers = tensor_of(graph, node.args[0])
        return None if integers is None else (integers, tensor_of(graph, node.args[1]))
    values = tensor_of(graph, node)
    return None if values is None else (values, None)


def _channel_mean(layer: Node, output: Tensor) -> Tensor:
    """Mean over all but the channel dimension: the last of a linear layer, the second of a convolution."""
    channel = 1 if layer.target in operators.CONVOLUTIONS else output.ndim - 1
    return output.mean([dim for dim in range(output.ndim) if dim != channel])
