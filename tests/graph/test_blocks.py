import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from hasten.errors import InvalidInput
from hasten.graph.blocks import Block, _period, drop_unused_tensors, find_blocks, find_layers, without_blocks
from hasten.graph.capture import capture, export


class Residual(nn.Module):
    """Post-activation, as in ResNets."""

    def __init__(self, width: int, inplace: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.relu(x + self.norm(self.conv(x)))
        return output


class Down(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.shortcut = nn.Conv2d(width, 2 * width, 3, 2, 1), nn.Conv2d(width, 2 * width, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + self.shortcut(x))


def resnet(inplace: bool = False) -> nn.Module:
    torch.manual_seed(0)
    stages = [Residual(4, inplace), Residual(4, inplace), Down(4), Residual(8, inplace), Residual(8, inplace)]
    stem = [nn.Conv2d(1, 4, 3), nn.ReLU(inplace)]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()


class Part(nn.Module):
    """One half of a transformer layer, its norm before or after."""

    def __init__(self, inner: int, after: bool) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(6), nn.Linear(6, inner), nn.Linear(inner, 6)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        def f(y: Tensor) -> Tensor:
            hidden = self.a(y)
            # GELU written out: an addition that is no residual block.
            output: Tensor = self.b(0.5 * hidden * (1 + torch.tanh(0.8 * (hidden + 0.044715 * hidden**3))))
            return output

        output: Tensor = self.norm(x + f(x)) if self.after else x + f(self.norm(x))
        return output


def transformer(after: bool, layers: int = 3) -> nn.Module:
    torch.manual_seed(0)
    parts = [Part(inner, after) for _ in range(layers) for inner in (6, 12)]
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Dropout(0.1), *parts, nn.LayerNorm(6)).eval()


@functools.cache
def captured(name: str) -> tuple[nn.Module, GraphModule]:
    model = resnet(name == "inplace") if "place" in name else transformer(name == "norm-after")
    return model, capture(model, (IMAGES if "place" in name else TOKENS,))


IMAGES, TOKENS = torch.randn(2, 1, 8, 8), torch.randn(2, 5, 4)


@pytest.mark.parametrize("name", ["inplace", "out-of-place"])
@pytest.mark.parametrize("leave_out", [[0], [1], [0, 1], [2, 3], [0, 1, 2, 3]])
def test_leaving_blocks_out_of_a_resnet_equals_the_resnet_without_them(name: str, leave_out: list[int]) -> None:
    model, graph = captured(name)
    blocks = find_blocks(graph)
    assert len(blocks) == 4
    assert find_layers(graph) == blocks
    shorter = without_blocks(graph, [blocks[i] for i in leave_out])
    removed = {[2, 3, 5, 6][i] for i in leave_out}
    expected = nn.Sequential(*(layer for i, layer in enumerate(model.children()) if i not in removed))
    torch.testing.assert_close(shorter(IMAGES), expected(IMAGES))
    assert numbers(shorter) == numbers(expected)
    assert not [name for name, _ in shorter.named_modules() if name and int(name.split(".")[0]) in removed]
    torch.testing.assert_close(graph(IMAGES), model(IMAGES))


@pytest.mark.parametrize("name", ["norm-before", "norm-after"])
@pytest.mark.parametrize("leave_out", [[0], [2], [0, 1], [0, 2]])
def test_leaving_layers_out_of_a_transformer(name: str, leave_out: list[int]) -> None:
    model, graph = captured(name)
    assert len(find_blocks(graph)) == 6
    layers = find_layers(graph)
    assert len(layers) == 3
    shorter = without_blocks(graph, [layers[i] for i in leave_out])
    removed = {3 + 2 * i + half for i in leave_out for half in (0, 1)}
    expected = nn.Sequential(*(layer for i, layer in enumerate(model.children()) if i not in removed))
    torch.testing.assert_close(shorter(TOKENS), expected(TOKENS))
    assert numbers(shorter) == numbers(expected)


def numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_single_blocks_of_a_transformer() -> None:
    model, graph = captured("norm-before")
    shorter = without_blocks(graph, [find_blocks(graph)[3]])
    expected = nn.Sequential(*(layer for i, layer in enumerate(model.children()) if i != 6))
    torch.testing.assert_close(shorter(TOKENS), expected(TOKENS))


def test_additions_that_are_no_blocks() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            parallel = self.a(x) + self.b(x)
            broadcast = parallel + self.a(parallel).mean(0, keepdim=True)
            output: Tensor = broadcast + 1
            return output

    assert find_blocks(capture(Net(), (torch.randn(2, 4),))) == ()


def test_shrunk_graph_exports_and_runs_at_another_batch_size() -> None:
    _, graph = captured("out-of-place")
    shorter = without_blocks(graph, find_blocks(graph)[::2])
    again = export(shorter, (IMAGES,)).module()
    assert numbers(again) == numbers(shorter)
    batch = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(again(batch), shorter(batch))


def test_block_of_another_graph_is_refused() -> None:
    _, graph = captured("out-of-place")
    ours = find_blocks(graph)[0]
    for start, end in (("here", "there"), (ours.start, "there"), ("here", ours.end)):
        with pytest.raises(InvalidInput, match="must be of this graph"):
            without_blocks(graph, [Block(start, end, ())])


def branches(function: Callable[[Tensor, Tensor], Tensor]) -> GraphModule:
    """A layer whose result and input go into `function`."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return function(x, self.layer(x))

    torch.manual_seed(0)
    return capture(Net().eval(), (torch.randn(2, 4),))


@pytest.mark.parametrize(
    ("function", "blocks"),
    [
        (lambda x, y: x + y, 1),
        (lambda x, y: y + x, 1),
        (lambda x, y: torch.add(x, y, alpha=2), 0),
        (lambda x, y: x - y, 0),
        (lambda x, y: x + y.double(), 0),
        (lambda x, y: x + y.sum(1, keepdim=True), 0),
        (lambda x, y: y + 1, 0),
        (lambda x, y: x + x * x, 0),  # no weights
    ],
)
def test_what_makes_a_block(function: Callable[[Tensor, Tensor], Tensor], blocks: int) -> None:
    assert len(find_blocks(branches(function))) == blocks


class Once(nn.Module):
    """An activation before and after a residual sum, with `between` on the way."""

    def __init__(self, between: Callable[[Tensor], Tensor], shortcut: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(4, 4), nn.Linear(4, 4)
        self.between, self.shortcut = between, shortcut

    def forward(self, x: Tensor) -> Tensor:
        x = self.shortcut(self.first(x).relu())
        return self.between(x + self.layer(x))


@pytest.mark.parametrize(
    ("between", "end"),
    [
        (lambda x: x.relu(), "relu"),
        (lambda x: F.dropout(x, 0.5, False).relu(), "relu"),
        (lambda x: x.tanh().relu(), "add"),
        (lambda x: x.sum(1, keepdim=True).relu(), "add"),
        (lambda x: x.relu() + x, "add"),  # read twice
        (lambda x: x.tanh(), "add"),
    ],
)
@pytest.mark.parametrize("dropout", [False, True])
def test_a_block_ends_behind_an_activation_of_the_kind_before_it(
    between: Callable[[Tensor], Tensor], end: str, dropout: bool
) -> None:
    def shortcut(x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, False) if dropout else x

    torch.manual_seed(0)
    blocks = find_blocks(capture(Once(between, shortcut).eval(), (torch.randn(2, 4),)))
    assert blocks[0].end.rstrip("_0123456789") == end


@pytest.mark.parametrize(
    ("signatures", "period"),
    [
        ("ab", 1),
        ("abab", 2),
        ("aaaa", 1),
        ("abcabc", 3),
        ("abcdabcd", 4),
        ("ababa", 1),
        ("abcdeabcde", 1),
        ("abba", 1),
        ("", 1),
    ],
)
def test_layers_repeat_at_least_twice(signatures: str, period: int) -> None:
    assert _period(signatures) == period


def test_drop_unused_tensors_keeps_what_is_read() -> None:
    graph = capture(nn.Linear(3, 2), (torch.randn(2, 3),))
    graph.register_buffer("left_over", torch.zeros(3))
    assert isinstance(graph, GraphModule)
    drop_unused_tensors(graph)
    assert set(graph.state_dict()) == {"weight", "bias"}


def test_modules_are_dropped_with_the_last_tensor_they_held() -> None:
    graph = capture(nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 2))), (torch.randn(2, 3),))
    graph.add_module("outer", nn.Module())
    graph.get_submodule("outer").add_module("inner", nn.Module())
    graph.get_submodule("outer.inner").register_parameter("unused", nn.Parameter(torch.zeros(2)))
    before = {name for name, _ in graph.named_modules() if not name.startswith("outer")}
    drop_unused_tensors(graph)
    assert {name for name, _ in graph.named_modules()} == before
    assert set(graph.state_dict()) == {"0.weight", "0.bias", "1.0.weight", "1.0.bias"}
