"""Paddings by name are the same convolutions, and every technique sees them."""

from typing import Any

import pytest
import torch
from torch import nn

from hasten.graph.capture import capture
from hasten.graph.layers import CONVOLUTIONS
from hasten.quantization.static import inference_form

KINDS = {nn.Conv1d: (2, 4, 12), nn.Conv2d: (2, 4, 12, 10), nn.Conv3d: (2, 4, 10, 9, 11)}


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (5, 2), (1, 1), (4, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_named_padding_becomes_numbers(kind: Any, kernel: int, dilation: int, padding: str) -> None:
    torch.manual_seed(0)
    norm = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}[kind]
    model = nn.Sequential(kind(4, 6, kernel, dilation=dilation, padding=padding), norm(6)).eval()
    x = torch.randn(KINDS[kind])
    graph = capture(model, (x,))
    assert any(node.target in CONVOLUTIONS for node in graph.graph.nodes)
    torch.testing.assert_close(graph(x), model(x))
    folded = inference_form(graph, (x,))
    assert not any("batch_norm" in str(node.target) for node in folded.graph.nodes)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_an_even_kernel_keeps_the_name() -> None:
    model, x = nn.Conv2d(3, 4, 4, padding="same"), torch.randn(2, 3, 8, 8)
    graph = capture(model, (x,))
    assert not any(node.target in CONVOLUTIONS for node in graph.graph.nodes)
    torch.testing.assert_close(graph(x), model(x))
