"""Unsigned quantized graphs in signed integers compute the same numbers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from hasten.graph.capture import capture
from hasten.graph.signed import signed_integers, unrounded_weights_to_float
from hasten.task import Task
from hasten.techniques.quantize import Quantize


@pytest.fixture(scope="module")
def example() -> Tensor:
    return torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def quantized(example: Tensor) -> GraphModule:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    ).eval()
    task = Task(model=model, example=(example,), holdout=[(example, torch.zeros(8, dtype=torch.int64))])
    return Quantize().apply(capture(model, (example,)), task)


def calls(graph: GraphModule, name: str) -> list[Any]:
    return [node.args for node in graph.graph.nodes if f".{name}." in str(node.target)]


def test_no_number_differs_and_nothing_is_unsigned(quantized: GraphModule, example: Tensor) -> None:
    signed = signed_integers(quantized)
    assert torch.uint8 in {args[-1] for args in calls(quantized, "quantize_per_tensor")}
    assert {args[-1] for args in calls(signed, "quantize_per_tensor")} == {torch.int8}
    assert torch.int32 not in {args[-1] for args in calls(signed, "dequantize_per_channel")}
    assert all(-128 <= low < high <= 127 for *_, low, high, _ in calls(signed, "quantize_per_tensor"))
    with torch.no_grad():
        torch.testing.assert_close(signed(example), quantized(example), rtol=0, atol=1e-6)


def test_only_layers_whose_result_is_not_rounded_get_float_weights(quantized: GraphModule, example: Tensor) -> None:
    signed = signed_integers(quantized)
    with torch.no_grad():
        before = signed(example)
        weights = len(calls(signed, "dequantize_per_channel"))
        assert unrounded_weights_to_float(signed) == 1
        assert len(calls(signed, "dequantize_per_channel")) == weights - 1
        torch.testing.assert_close(signed(example), before, rtol=0, atol=1e-6)
