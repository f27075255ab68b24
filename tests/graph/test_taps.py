import pytest
import torch
from torch import Tensor, nn

from hasten.errors import InvalidInput
from hasten.graph.capture import as_tuple, capture, export
from hasten.graph.taps import tap, untap, values


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.a(x).relu()
        return self.b(hidden), hidden.sum(1)


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model", [Two(), nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))])
def test_tap_appends_and_untap_restores(model: nn.Module) -> None:
    graph = capture(model, (X,))
    count = len(as_tuple(graph(X)))
    tapped = tap(graph, ["relu", "linear"])
    output = tapped(X)
    assert isinstance(output, tuple)
    assert [tuple(y.shape) for y in output[count:]] == [(5, 4), (5, 4)]
    torch.testing.assert_close(output[count], output[count + 1].relu())
    torch.testing.assert_close(output[:count], as_tuple(graph(X)))
    restored = untap(tapped, count)
    assert type(restored(X)) is type(graph(X))
    torch.testing.assert_close(as_tuple(restored(X)), as_tuple(graph(X)))
    assert len(as_tuple(graph(X))) == count


def test_tapped_graph_exports_again() -> None:
    program = export(tap(capture(Two(), (X,)), ["relu"]), (X,))
    assert len(program.module()(X[:2])) == 3


def test_values() -> None:
    graph = capture(Two(), (X,))
    found = values(graph, (X,))
    assert {"linear", "relu", "linear_1"} <= set(found)
    assert set(values(graph, (X,), ["relu"])) == {"relu"}
    torch.testing.assert_close(found["relu"], found["linear"].relu())
    with pytest.raises(InvalidInput, match="Did you mean 'relu'"):
        tap(graph, ["rleu"])
    with pytest.raises(InvalidInput, match="must give a tensor"):
        values(graph, (X,), ["nothing"])
