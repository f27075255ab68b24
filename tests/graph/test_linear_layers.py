"""Every way to write a product with a weight becomes `aten.linear`, with the same numbers; other products stay."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.graph.capture import capture
from hasten.task import Task
from hasten.techniques.prune_neurons import PruneNeurons
from hasten.techniques.quantize import Quantize
from hasten.techniques.quantize_weights import QuantizeWeights

Forward = Callable[["Products", Tensor], Tensor]


class Products(nn.Module):
    """Two weights as GPT-2's Conv1D stores them, one as nn.Linear does, a bias, and a basis that is not trained."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8, 6))
        self.tied = self.up
        self.short = nn.Parameter(torch.randn(6))
        self.linear, self.bias = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(8))
        self.row, self.stack = nn.Parameter(torch.randn(1, 8)), nn.Parameter(torch.randn(2, 6, 8))
        self.register_buffer("basis", torch.randn(6, 8))
        self.basis: Tensor
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def _conv1d(m: Products, x: Tensor) -> Tensor:
    return torch.addmm(m.bias, x.view(-1, 6), m.up).view(*x.shape[:-1], 8)


FORMS: dict[str, Forward] = {
    "addmm": _conv1d,
    "mm": lambda m, x: torch.mm(x.flatten(0, 1), m.up),
    "matmul": lambda m, x: x @ m.up,
    "matmul with a transposed weight": lambda m, x: x @ m.linear.T,
    "matmul with permuted axes": lambda m, x: x @ m.linear.permute(1, 0),
    "matmul with permuted axes from the end": lambda m, x: x @ m.linear.permute(-1, -2),
    "matmul with axes transposed from either end": lambda m, x: x @ m.linear.transpose(1, -2),
    "matmul with transposed axes": lambda m, x: x @ m.linear.transpose(-2, -1),
    "addmm with a transposed weight": lambda m, x: torch.addmm(m.bias, x.flatten(0, 1), m.linear.t()),
    "two products of one weight": lambda m, x: x @ m.up + torch.relu(x) @ m.tied,
}
OTHERS: dict[str, Forward] = {
    "a scaled addmm": lambda m, x: torch.addmm(m.bias, x.flatten(0, 1), m.up, alpha=2),
    "an addmm with a scaled bias": lambda m, x: torch.addmm(m.bias, x.flatten(0, 1), m.up, beta=2),
    "a weight with its axes in place": lambda m, x: x @ m.up.permute(0, 1),
    "a weight with an axis put in its own place": lambda m, x: x @ m.up.transpose(1, -1),
    "a bias of one number": lambda m, x: torch.addmm(m.short[:1], x.flatten(0, 1), m.up),
    "a bias that stands for one row": lambda m, x: torch.addmm(m.row, x.flatten(0, 1), m.up),
    "a bias that is computed": lambda m, x: torch.addmm(m.bias * 2, x.flatten(0, 1), m.up),
    "a vector times a weight": lambda m, x: x[0, 0] @ m.up,
    "a weight times a weight": lambda m, x: x[..., :1] + m.short @ m.up,
    "a stack of weights": lambda m, x: x @ m.stack,
    "a bias per row": lambda m, x: torch.addmm(x.flatten(0, 1)[:, :1], x.flatten(0, 1), m.up),
    "a weight on the left": lambda m, x: m.down @ x.transpose(1, 2),
    "a weight that is also looked up": lambda m, x: x @ m.up + m.up[0],
    "a buffer": lambda m, x: x @ m.basis,
    "two activations": lambda m, x: x @ x.transpose(1, 2),
}


def _operators(graph: torch.fx.GraphModule) -> set[str]:
    return {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}


def _weights(graph: torch.fx.GraphModule) -> list[nn.Parameter]:
    layers = [node for node in graph.graph.nodes if node.target is torch.ops.aten.linear.default]
    return [graph.get_parameter(str(layer.args[1].target)) for layer in layers]


@pytest.mark.parametrize("form", FORMS)
def test_a_product_with_a_weight_is_a_linear_layer(form: str) -> None:
    model, x = Products(FORMS[form]).eval(), torch.randn(2, 3, 6)
    graph = capture(model, (x,))
    assert not {"aten.addmm.default", "aten.mm.default", "aten.matmul.default"} & _operators(graph)
    assert {tuple(weight.shape) for weight in _weights(graph)} == {(8, 6)}
    assert tuple(model.up.shape) == (6, 8)
    for other in (x, torch.randn(5, 3, 6)):
        torch.testing.assert_close(graph(other), model(other))


def test_nodes_are_called_what_they_are_called_in_every_later_trace() -> None:
    graph = capture(Products(lambda m, x: (x @ m.up) @ m.down).eval(), (torch.randn(2, 3, 6),))
    assert [n.name for n in graph.graph.nodes if n.target is torch.ops.aten.linear.default] == ["linear", "linear_1"]


def test_a_weight_under_two_names_stays_one() -> None:
    graph = capture(Products(FORMS["two products of one weight"]).eval(), (torch.randn(2, 3, 6),))
    assert len({id(weight) for weight in _weights(graph)}) == 1


@pytest.mark.parametrize("form", OTHERS)
def test_other_products_stay(form: str) -> None:
    model, x = Products(OTHERS[form]).eval(), torch.randn(2, 3, 6)
    graph = capture(model, (x,))
    assert "aten.linear.default" not in _operators(graph)
    torch.testing.assert_close(graph(x), model(x))


@pytest.mark.parametrize(
    "technique", [Quantize(), QuantizeWeights(), PruneNeurons(ratio=0.5)], ids=lambda t: type(t).__name__
)
def test_techniques_reach_the_layers_of_gpt2(technique: Any) -> None:
    def mlp(m: Products, x: Tensor) -> Tensor:
        hidden = torch.nn.functional.gelu(_conv1d(m, x), approximate="tanh")
        return torch.addmm(m.short, hidden.view(-1, 8), m.down).view(x.shape)

    model, x = Products(mlp).eval(), torch.randn(16, 3, 6)
    task = Task(model, (x,), holdout=[x], calibration=[x])
    changed = technique.apply(capture(model, task.example), task)
    read = {str(node.target) for node in changed.graph.nodes if node.op == "get_attr"}
    tensors = {name: tensor for name, tensor in changed.state_dict().items() if name in read}
    sizes = {tuple(t.shape): t.dtype for t in tensors.values() if t.ndim == 2}
    if isinstance(technique, PruneNeurons):
        assert set(sizes) == {(4, 6), (6, 4)}
    else:
        assert sizes == {(8, 6): torch.int8, (6, 8): torch.int8}
