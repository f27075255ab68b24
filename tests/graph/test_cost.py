"""Work is counted in whatever form a graph is: quantizing puts in nodes, and changes no product."""

import torch
from torch import nn

import hasten
from hasten.graph.cost import total_macs


def test_a_quantized_graph_has_the_work_of_the_float_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    x = torch.randn(2, 3, 8, 8)
    task = hasten.Task(model, (x,), holdout=[x], calibration=[x])
    graph = hasten.capture(model, (x,))
    quantized = hasten.Quantize().apply(graph, task)
    assert total_macs(graph) == 8 * 36 * 27 + 8 * 36 * 5
    assert total_macs(quantized) == total_macs(graph)
    assert any("val" not in node.meta for node in quantized.graph.nodes)  # counted on a copy
