"""Layer by layer, each with the layers before it already quantized: round weights against the data, correct biases.

Rounding is nearly unbiased weight by weight, but activations after a clamp are all positive, so a layer sums its
weights' errors into a constant shift of each output channel, which its bias can take back. Source of the bias part:
Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, in its
empirical form; of the weight part: `hasten.quantization.rounding` and `hasten.quantization.learned_rounding`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from hasten.graph.layers import CONVOLUTIONS, LAYERS
from hasten.graph.parameters import tensor_of
from hasten.quantization.learned_rounding import learn_rounding
from hasten.quantization.rounding import can_round, groups_of, input_moments, nearest, round_weights
from hasten.quantization.stored import stored
from hasten.task import Inputs

_BIAS_ARGUMENT = 2
ROUNDINGS = {"nearest": nearest, "gptq": round_weights, "adaround": learn_rounding}


def refine(quantized: GraphModule, reference: GraphModule, inputs: Inputs, *, rounding: str, biases: bool) -> None:
    """Change the integers of weights and biases of `quantized` in place.

    Args:
        quantized: Graph with Q/DQ, made from `reference`, whose layers keep their names.
        reference: The same graph in float.
        inputs: One batch of calibration samples; a few dozen are enough, since every position of every sample counts.
        rounding: How weights are rounded anew, a name in `ROUNDINGS`.
        biases: Whether to correct biases.
    """
    layers = {node.name: node for node in reference.graph.nodes if _is_layer(node)}
    with torch.no_grad():
        floats = _LayerMeans(reference, set(layers))
        floats.run(*inputs)
        _Refiner(quantized, reference, layers, floats.found, rounding, biases).run(*inputs)


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
        rounding: str,
        biases: bool,
    ) -> None:
        super().__init__(graph)
        self._graph, self._reference, self._layers, self._means = graph, reference, layers, means
        self._rounding, self._biases = rounding, biases

    def run_node(self, n: Node) -> Any:
        """Run a node; a layer once its integers are refined."""
        if n.name in self._layers and self._rounding != "nearest":
            self._round(n)
        result = super().run_node(n)
        return self._shifted(n, result) if n.name in self._layers and self._biases else result

    def _round(self, layer: Node) -> None:
        weight = tensor_of(self._reference, self._layers[layer.name].args[1])
        found = stored(self._graph, layer.args[1])
        if weight is None or found is None or not can_round(layer, weight):
            return
        groups = groups_of(layer)
        has_bias = len(layer.args) > _BIAS_ARGUMENT and layer.args[_BIAS_ARGUMENT] is not None
        moments = input_moments(layer, self.env[layer.args[0]], weight, centred=has_bias)  # type: ignore[index]
        in_groups = (groups, len(weight) // groups, -1)
        rounded = ROUNDINGS[self._rounding](
            weight.reshape(in_groups), found.scales().reshape(in_groups), moments, found.low, found.high
        )
        found.integers.copy_(rounded.reshape(found.integers.shape))
        # The weights were dequantized before their integers changed.
        self.env[layer.args[1]] = found.dequantize()  # type: ignore[index]

    def _shifted(self, layer: Node, result: Tensor) -> Tensor:
        """Correct the bias of an integer layer, and its output with it."""
        if stored(self._graph, layer.args[1]) is None or len(layer.args) <= _BIAS_ARGUMENT:
            return result
        shift = self._means[layer.name] - _channel_mean(layer, result)
        argument = layer.args[_BIAS_ARGUMENT]
        found, values = stored(self._graph, argument), tensor_of(self._graph, argument)
        if found is not None:
            steps = torch.round(shift / found.scale)
            found.integers.add_(steps.to(found.integers.dtype))
            shift = steps * found.scale
        elif values is not None:
            values += shift
        else:
            return result
        return result + shift.view([-1 if dim == _channel(layer, result) else 1 for dim in range(result.ndim)])


def _is_layer(node: Node) -> bool:
    return node.target in LAYERS


def _channel_mean(layer: Node, output: Tensor) -> Tensor:
    """Mean over all but the channel dimension."""
    return output.mean([dim for dim in range(output.ndim) if dim != _channel(layer, output)])


def _channel(layer: Node, output: Tensor) -> int:
    """The channel dimension of a layer's output: the second of a convolution, the last of a linear layer."""
    return 1 if layer.target in CONVOLUTIONS else output.ndim - 1
