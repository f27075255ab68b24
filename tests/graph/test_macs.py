"""Multiply-accumulates and bytes of every kind of product, counted by hand; the batch counts as 1."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.graph.capture import capture
from hasten.graph.channels import find_channels
from hasten.graph.cost import node_costs, parameter_count, reach, total_macs


class Fn(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)[0]
        return y


def rows(x: Tensor) -> Tensor:
    return x[:, :2].mT


TOKENS, IMAGE, HEADS = (2, 7, 4), (2, 4, 5, 6), (2, 3, 7, 4)
CASES: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "linear": (nn.Linear(4, 5), TOKENS, 7 * 5 * 4),
    "conv1d": (nn.Conv1d(7, 5, 3), TOKENS, 5 * 2 * 7 * 3),
    "grouped conv2d": (nn.Conv2d(4, 6, (3, 2), groups=2), IMAGE, 6 * 3 * 5 * 2 * 6),
    "conv3d": (nn.Conv3d(3, 2, (2, 3, 1)), (2, 3, 4, 5, 6), 2 * 3 * 3 * 6 * 3 * 6),
    "transposed": (nn.ConvTranspose2d(4, 6, (3, 2), stride=2, groups=2), IMAGE, 4 * 30 * 3 * 6),
    "matmul": (Fn(lambda x: x @ rows(x)), TOKENS, 7 * 2 * 4),
    "bmm": (Fn(lambda x: torch.bmm(x, rows(x))), TOKENS, 7 * 2 * 4),
    "baddbmm": (Fn(lambda x: torch.baddbmm(x[:, :, :2], x, rows(x))), TOKENS, 7 * 2 * 4),
    "a vector": (Fn(lambda x: x @ x[0, 0]), TOKENS, 7 * 4),
    "einsum": (Fn(lambda x: torch.einsum("nij, nkj -> nik", x, x[:, :3])), TOKENS, 7 * 4 * 3),
    "attention": (Fn(lambda x: F.scaled_dot_product_attention(x[:, :, :5], x, x[..., :2])), HEADS, 3 * 5 * 7 * (4 + 2)),
    "lstm": (
        Recurrent(nn.LSTM(4, 3, num_layers=2, bidirectional=True, batch_first=True)),
        TOKENS,
        7 * 2 * (12 * (4 + 3) + 12 * (6 + 3)),
    ),
    "gru": (Recurrent(nn.GRU(4, 3, batch_first=True)), TOKENS, 7 * 9 * (4 + 3)),
    "nothing but sums": (Fn(lambda x: x.relu() + x), TOKENS, 0),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch, on the weights of any LSTM
@pytest.mark.parametrize("name", CASES)
def test_products_are_counted(name: str) -> None:
    model, shape, macs = CASES[name]
    assert total_macs(capture(model.eval(), (torch.randn(*shape),))) == macs


def test_bytes_are_of_what_is_read_and_written() -> None:
    graph = capture(Fn(lambda x: torch.cat(x.double().split(3, 1)[:2], 2)), (torch.randn(2, 7, 4),))
    sizes = {name.split("_")[0]: cost.size_bytes for name, cost in node_costs(graph).items()}
    assert sizes["to"] == 7 * 4 * (4 + 8)
    assert sizes["split"] == 2 * 7 * 4 * 8
    assert sizes["cat"] == 2 * 2 * 3 * 4 * 8


def test_a_shared_parameter_counts_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    assert parameter_count(capture(nn.Sequential(first, second), (torch.randn(2, 4),))) == 16 + 4 + 4


@pytest.mark.parametrize(
    ("between", "exact", "approximate"),
    [(nn.ReLU(), 42, 0), (nn.LayerNorm(6), 0, 42), (nn.Softmax(1), 0, 0)],
)
def test_what_the_units_between_two_layers_reach(between: nn.Module, exact: int, approximate: int) -> None:
    model = nn.Sequential(nn.Linear(4, 6), between, nn.Linear(6, 3)).double()
    found = reach(find_channels(capture(model, (torch.randn(2, 4).double(),))))
    assert (found.macs, found.fixed_macs) == (42, 0)
    assert (found.exact_macs, found.approximate_macs) == (exact, approximate)
