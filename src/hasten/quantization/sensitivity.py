"""How much each layer's rounding alone disturbs the network's output."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from hasten.errors import Unsupported
from hasten.graph.capture import as_tuple
from hasten.graph.layers import LAYERS
from hasten.graph.parameters import tensor_of
from hasten.quantization import affine, linear
from hasten.quantization.static import inference_form, one_batch
from hasten.task import Task, calibration_inputs


def sensitivity(
    graph: GraphModule,
    task: Task,
    *,
    weight_bits: int = 8,
    group: int | None = None,
    activations: bool = True,
    samples: int = 16,
) -> dict[str, float]:
    """Signal to noise (SQNR) of the network's first output with one layer rounded and all others in float, in dB.

    Args:
        graph: Captured graph, of `task.inner` where the task has pre- or postprocessing; left as it is.
        task: Gives the calibration inputs.
        weight_bits: Width of the weights' integers, 2 to 8, rounded to nearest.
        group: Weights that share a scale; None, or where it does not divide a channel's weights: one output channel.
        activations: Whether the layer's input is rounded too, to 8 bits per tensor.
        samples: Calibration samples to run, once per layer.

    Returns:
        SQNR by the layer's name in the captured graph, worst first; infinite where nothing changes. The names are
        those that `keep_float` of the quantizing techniques takes.

    Raises:
        Unsupported: The graph has no convolution or linear layer.
    """
    task = task.inner
    reference = inference_form(graph, task.example)
    layers = [node for node in reference.graph.nodes if _is_layer(reference, node)]
    if not layers:
        raise Unsupported("The graph has no convolution or linear layer whose rounding could be measured.")
    inputs = one_batch(calibration_inputs(task), samples)
    with torch.no_grad():
        exact = as_tuple(reference(*inputs))[0].double()
        found = {}
        for layer in layers:
            weight = _round_weight(reference, layer, weight_bits, group)
            rounded = as_tuple(_OneRounded(reference, layer, weight, activations).run(*inputs))[0].double()
            found[layer.name] = _decibels(exact, rounded - exact)
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _is_layer(graph: GraphModule, node: Node) -> bool:
    return node.target in LAYERS and tensor_of(graph, node.args[1]) is not None


def _round_weight(graph: GraphModule, layer: Node, bits: int, group: int | None) -> Tensor:
    weight = tensor_of(graph, layer.args[1])
    assert weight is not None
    by_group = group is not None and weight[0].numel() % group == 0
    granularity = "group" if by_group else "channel"
    found = linear.quantize(weight, bits, symmetric=True, granularity=granularity, group=group or 1)
    return found.dequantize().to(weight.dtype)


class _OneRounded(Interpreter):
    """Runs a graph with one layer on a rounded weight and, if asked for, a rounded input."""

    def __init__(self, graph: GraphModule, layer: Node, weight: Tensor, activations: bool) -> None:
        super().__init__(graph)
        self._layer, self._weight, self._activations = layer, weight, activations

    def run_node(self, n: Node) -> Any:
        if n is not self._layer:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        x = _round_activation(args[0]) if self._activations else args[0]
        return n.target(x, self._weight, *args[2:], **kwargs)  # type: ignore[operator]


def _round_activation(x: Tensor) -> Tensor:
    scale, zero = affine.parameters(x.min(), x.max(), 0, 255, symmetric=False)
    return torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero), 0, 255)


def _decibels(signal: Tensor, noise: Tensor) -> float:
    power = float(noise.square().mean())
    return float("inf") if power == 0 else float(10 * torch.log10(signal.square().mean() / power))
