"""Layer by layer, each with the layers before it already quantized: round weights against the data, correct biases.

Rounding is nearly unbiased weight by weight, but activations after a clamp are all positive, so a layer sums its
weights' errors into a constant shift of each output channel, which its bias can take back. Source of the bias part:
Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, in its
empirical form; of the weight part: `hasten.quantization.rounding`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from hasten.graph.parameters import tensor_of
from hasten.quantization import operators
from hasten.quantization.rounding import can_round, groups_of, input_covariance, round_weights
from hasten.quantization.torchao import DEQUANTIZE_PER_CHANNEL
from hasten.task import Inputs

_BIAS_ARGUMENT = 2


def refine(quantized: GraphModule, reference: GraphModule, inputs: Inputs, *, weights: bool, biases: bool) -> None:
    """Change the integers of weights and biases of `quantized` in place.

    Args:
        quantized: Graph with Q/DQ, made from `reference`, whose layers keep their names.
        reference: The same graph in float.
        inputs: One batch of calibration samples; a few dozen are enough, since every position of every sample counts.
        weights: Whether to round weights anew.
        biases: Whether to correct biases.
    """
    layers = {node.name: node for node in reference.graph.nodes if _is_layer(node)}
    with torch.no_grad():
        floats = _LayerMeans(reference, set(layers))
        floats.run(*inputs)
        _Refiner(quantized, reference, layers, floats.found, weights, biases).run(*inputs)


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


class _Refiner(Interpreter):
    """Runs a quantized graph and refines every layer as it passes, so that later layers see refined inputs."""

    def __init__(
        self,
        graph: GraphModule,
        reference: GraphModule,
        layers: dict[str, Node],
        means: dict[str, Tensor],
        weights: bool,
        biases: bool,
    ) -> None:
        super().__init__(graph)
        self._graph, self._reference, self._layers, self._means = graph, reference, layers, means
        self._weights, self._biases = weights, biases

    def run_node(self, n: Node) -> Any:
        """Run a node; a layer once its integers are refined."""
        if n.name in self._layers and self._weights:
            self._round(n)
        result = super().run_node(n)
        return self._shifted(n, result) if n.name in self._layers and self._biases else result

    def _round(self, layer: Node) -> None:
        weight = tensor_of(self._reference, self._layers[layer.name].args[1])
        found = _integers(self._graph, layer.args[1])
        if weight is None or found is None or not can_round(layer, weight):
            return
        integers, scale = found
        groups = groups_of(layer)
        covariance = input_covariance(layer, self.env[layer.args[0]], weight)  # type: ignore[index]
        low, high = self._range(layer.args[1])
        rounded = round_weights(
            weight.reshape(groups, len(weight) // groups, -1), scale.reshape(groups, -1), covariance, low, high
        )
        integers.copy_(rounded.reshape(integers.shape))
        # The weights were dequantized before their integers changed.
        self.env[layer.args[1]] = integers * scale.view(-1, *[1] * (integers.ndim - 1))  # type: ignore[index]

    def _shifted(self, layer: Node, result: Tensor) -> Tensor:
        """Correct the bias of an integer layer, and its output with it."""
        if _integers(self._graph, layer.args[1]) is None or len(layer.args) <= _BIAS_ARGUMENT:
            return result
        shift = self._means[layer.name] - _channel_mean(layer, result)
        argument = layer.args[_BIAS_ARGUMENT]
        found, values = _integers(self._graph, argument), tensor_of(self._graph, argument)
        if found is not None:
            integers, scale = found
            steps = torch.round(shift / scale)
            integers += steps.to(integers.dtype)
            shift = steps * scale
        elif values is not None:
            values += shift
        else:
            return result
        return result + shift.view([-1 if dim == _channel(layer, result) else 1 for dim in range(result.ndim)])

    def _range(self, dequantize: Any) -> tuple[int, int]:
        low, high = dequantize.args[4:6]
        return int(low), int(high)


def _is_layer(node: Node) -> bool:
    return node.target in operators.CONVOLUTIONS or node.target is torch.ops.aten.linear.default


def _integers(graph: GraphModule, node: Any) -> tuple[Tensor, Tensor] | None:
    """Integers of a constant and their scale, one per slice of its first dimension; None if it is no such constant."""
    if not isinstance(node, Node) or node.target is not DEQUANTIZE_PER_CHANNEL or node.args[3] != 0:
        return None
    integers, scale = tensor_of(graph, node.args[0]), tensor_of(graph, node.args[1])
    return None if integers is None or scale is None else (integers, scale)


def _channel_mean(layer: Node, output: Tensor) -> Tensor:
    """Mean over all but the channel dimension."""
    return output.mean([dim for dim in range(output.ndim) if dim != _channel(layer, output)])


def _channel(layer: Node, output: Tensor) -> int:
    """The channel dimension of a layer's output: the second of a convolution, the last of a linear layer."""
    return 1 if layer.target in operators.CONVOLUTIONS else output.ndim - 1
