"""Measure the statistics of batch norm anew on a graph whose weights changed."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from hasten.graph.parameters import tensor_of
from hasten.task import Inputs

_MEAN, _VARIANCE = 3, 4


def reestimate(graph: GraphModule, inputs: Inputs) -> int:
    """Replace running means and variances in place, in one pass; returns how many batch norms there are."""
    runner = _Reestimator(graph)
    with torch.no_grad():
        runner.run(*inputs)
    return runner.count


class _Reestimator(Interpreter):
    """Runs a graph and sets every batch norm's statistics to those of its input before it runs."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self._graph, self.count = graph, 0

    def run_node(self, n: Node) -> Any:
        if n.target is torch.ops.aten.batch_norm.default:
            mean, variance = tensor_of(self._graph, n.args[_MEAN]), tensor_of(self._graph, n.args[_VARIANCE])
            if mean is not None and variance is not None:
                x: Tensor = self.env[n.args[0]]  # type: ignore[index]
                rest = [dim for dim in range(x.ndim) if dim != 1]
                mean.copy_(x.mean(rest))
                # Running variances are unbiased, as training leaves them.
                variance.copy_(x.var(rest, correction=1))
                self.count += 1
        return super().run_node(n)
