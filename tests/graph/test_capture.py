"""Capture keeps numbers, parameter names and a dynamic batch; what cannot be captured is refused with a reason."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from hasten.errors import InvalidInput
from hasten.graph.capture import as_tuple, capture, export, has_dynamic_batch, outputs, placeholders


def _bert() -> tuple[nn.Module, tuple[Tensor, ...]]:
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    return BertModel(config).eval(), (torch.randint(0, 50, (1, 7)), torch.ones(1, 7, dtype=torch.long))


class Nested(nn.Module):
    """Returns a dictionary that holds a list and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, *inputs: Tensor) -> dict[str, Any]:
        y = self.linear(inputs[0])
        return {"a": [y, y + inputs[1]], "b": 3}


class FixedBatch(nn.Module):
    """Its shape arithmetic only works for one batch size."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 6) * 2


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


def _nested() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Nested(), (torch.randn(1, 4), torch.randn(1, 3))


def _convolution() -> tuple[nn.Module, tuple[Tensor, ...]]:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
    return net, (torch.randn(2, 3, 8, 8),)


@pytest.mark.parametrize("make", [_bert, _nested, _convolution])
def test_the_graph_gives_the_same_numbers_at_any_batch_size(make: Callable[[], Any]) -> None:
    model, example = make()
    model.eval()
    graph = capture(model, example)
    assert has_dynamic_batch(graph)
    for batch in (1, 5):
        inputs = tuple(x[:1].repeat(batch, *[1] * (x.ndim - 1)) for x in example)
        found = as_tuple(graph(*inputs))
        want = [y for y in torch.utils._pytree.tree_leaves(model(*inputs)) if isinstance(y, Tensor)]
        assert len(found) == len(want) == len(outputs(graph))
        for y, z in zip(found, want, strict=True):
            torch.testing.assert_close(y, z)


def test_parameter_names_are_kept_and_the_model_is_left_alone() -> None:
    model, example = _convolution()
    model.train()
    graph = capture(model, example)
    assert {name for name, _ in graph.named_parameters()} == {name for name, _ in model.named_parameters()}
    assert model.training
    assert [node.name for node in placeholders(graph)] == ["input_1"]


def test_a_graph_exports_again() -> None:
    model, example = _bert()
    graph = capture(model, example)
    again = export(graph, example).module(check_guards=False)
    torch.testing.assert_close(again(*example), graph(*example))


def test_a_batch_that_cannot_vary_stays_fixed() -> None:
    graph = capture(FixedBatch(), (torch.randn(4, 3),))
    assert not has_dynamic_batch(graph)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Raises(), "must be exportable by torch.export, but it raised"),
        (nn.Linear(7, 2), "must run on `example`, but raised RuntimeError"),
    ],
)
def test_what_cannot_be_captured_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        capture(model, (torch.randn(2, 3),))


def test_outputs_that_are_not_finite_are_refused() -> None:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    with pytest.raises(InvalidInput, match="output 0 has 4 of 4 values"):
        capture(model, (torch.randn(2, 3),))
