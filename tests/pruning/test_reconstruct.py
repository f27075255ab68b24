"""Refitting after a cut: what can be made good is made good, what cannot is left, and the original stays as it is."""

import statistics
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hasten
from hasten.graph.channels import Channels, Unit, attribute, find_channels
from hasten.graph.lockstep import Frontier, affordable
from hasten.graph.mode import set_training
from hasten.graph.surgery import remove
from hasten.graph.taps import values
from hasten.pruning.least_squares import Moments, refit
from hasten.pruning.reconstruct import reconstruct


class Residual(nn.Module):
    """Two residual branches with batch norm; dilation, stride and bias on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a, self.na = nn.Conv2d(8, 12, 3, padding=2, dilation=2), nn.BatchNorm2d(12)
        self.b, self.nb = nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.c, self.d = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.nb(self.b(F.relu(self.na(self.a(x))))))
        x = x + self.d(F.relu(self.c(x)))
        return self.fc(x.mean((2, 3)))


class Encoder(nn.Module):
    """Attention and an MLP, norms first."""

    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.out, self.up, self.down = (
            nn.Linear(16, 48),
            nn.Linear(16, 16),
            nn.Linear(16, 32),
            nn.Linear(32, 16),
        )

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(self.n1(x)).view(n, t, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, 16))
        return x + self.down(F.gelu(self.up(self.n2(x))))


class Depthwise(nn.Module):
    """A layer that is not refitted between two that are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mid, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8)
        self.b, self.c = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.b.weight.data[1] = self.b.weight.data[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.norm(self.mid(self.b(F.relu(self.a(x)))))))


def some_units(channels: Channels, kinds: Sequence[str], share: float) -> list[Unit]:
    """The first `share` of the units of every exact group."""
    groups = [g for g in channels.groups if g.kind in kinds and not g.approximate]
    return [unit for g in groups for unit in g.units[: int(share * len(g.units))]]


def settled_norms(model: nn.Module, x: Tensor) -> nn.Module:
    """Batch norms with statistics of the data and scales of their own."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    model.train()(x)
    return model.eval()


def relative(found: Tensor, wanted: Tensor) -> float:
    """Squared error in units of the variance."""
    return float(F.mse_loss(found, wanted) / wanted.var())


@pytest.mark.parametrize(
    ("architecture", "shape", "kinds", "gain"),
    [
        (Residual, (3, 16, 16), ("filter",), 4),
        (Encoder, (10, 16), ("neuron", "head"), 2),
        (Depthwise, (3, 12, 12), ("filter",), 2),
    ],
    ids=["residual", "encoder", "depthwise"],
)
def test_output_error_falls_on_inputs_it_was_not_fitted_on(
    architecture: type[nn.Module], shape: tuple[int, ...], kinds: Sequence[str], gain: float
) -> None:
    """Always, and by `gain` for the median of five networks of random weights, which differ much in what they bear."""
    gains = []
    for seed in range(5):
        torch.manual_seed(seed)
        x, unseen = torch.randn(128, *shape), torch.randn(128, *shape)
        graph = hasten.capture(settled_norms(architecture(), x), (x[:2],))
        before = {name: value.clone() for name, value in graph.state_dict().items()}
        channels = find_channels(graph)
        units = some_units(channels, kinds, 0.25)
        plain, refitted = remove(channels, units), remove(channels, units)
        assert reconstruct(refitted, channels, units, [(part,) for part in x.split(32)]) > 0
        with torch.no_grad():
            wanted = graph(unseen)
            gains.append(relative(plain(unseen), wanted) / relative(refitted(unseen), wanted))
        assert all(torch.equal(value, before[name]) for name, value in graph.state_dict().items())
        shapes = [{name: v.shape for name, v in pruned.state_dict().items()} for pruned in (plain, refitted)]
        assert shapes[0] == shapes[1]
    assert min(gains) > 1
    assert statistics.median(gains) > gain


def test_what_others_can_say_is_lost_without_a_trace() -> None:
    """A filter that is a copy of another is worth nothing once the next layer knows."""
    torch.manual_seed(0)
    model = Residual()
    for tensor in (model.a.weight, model.a.bias, model.c.weight, model.c.bias):
        assert tensor is not None
        tensor.data[:3] = tensor.data[3:6]
    x = torch.randn(128, 3, 16, 16)
    settled_norms(model, x)
    for tensor in (model.na.weight, model.na.bias):
        tensor.data[:3] = tensor.data[3:6]
    graph = hasten.capture(model, (x[:2],))
    channels = find_channels(graph)
    units = [u for g in channels.groups if g.name in ("a", "c") for u in g.units[:3]]
    plain, refitted = remove(channels, units), remove(channels, units)
    reconstruct(refitted, channels, units, [(x,)])
    with torch.no_grad():
        wanted = graph(x)
        assert relative(plain(x), wanted) > 1e-2
        assert relative(refitted(x), wanted) < 1e-4


@pytest.mark.parametrize("size", [1, 3, 64])
def test_any_batch_size_will_do(size: int) -> None:
    """Rows are halved over all samples, so that batches of one sample leave none of the halves empty."""
    torch.manual_seed(0)
    x = torch.randn(64, 3, 16, 16)
    graph = hasten.capture(settled_norms(Residual(), x), (x[:2],))
    channels = find_channels(graph)
    units = some_units(channels, ("filter",), 0.25)
    plain, refitted = remove(channels, units), remove(channels, units)
    reconstruct(refitted, channels, units, [(part,) for part in x.split(size)])
    with torch.no_grad():
        assert relative(refitted(x), graph(x)) < relative(plain(x), graph(x)) / 4


def test_one_sample_is_better_than_none() -> None:
    torch.manual_seed(0)
    x, unseen = torch.randn(1, 40, 16), torch.randn(8, 40, 16)
    graph = hasten.capture(Encoder().eval(), (x,))
    channels = find_channels(graph)
    units = some_units(channels, ("neuron",), 0.25)
    plain, refitted = remove(channels, units), remove(channels, units)
    reconstruct(refitted, channels, units, [(x,)])
    with torch.no_grad():
        wanted = graph(unseen)
        assert relative(refitted(unseen), wanted) < relative(plain(unseen), wanted)


def test_training_starts_from_the_function_that_was_fitted() -> None:
    """Batch norm divides by the batch's own statistics in training, so they must be those it was fitted with."""
    torch.manual_seed(0)
    x = torch.randn(128, 3, 16, 16)
    graph = hasten.capture(settled_norms(Residual(), x), (x[:2],))
    channels = find_channels(graph)
    units = some_units(channels, ("filter",), 0.5)
    refitted = remove(channels, units)
    reconstruct(refitted, channels, units, [(x,)])
    with torch.no_grad():
        fixed = refitted(x)
        set_training(refitted, True)
        assert relative(refitted(x), fixed) < 0.02


def test_tied_weights_stay() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.square = nn.Linear(6, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.square(F.relu(self.square(F.relu(self.up(x))))).sum(1)

    x = torch.randn(64, 6)
    graph = hasten.capture(Tied().eval(), (x[:2],))
    channels = find_channels(graph)
    units = channels.groups[0].units[:2]
    plain, refitted = remove(channels, units), remove(channels, units)
    assert reconstruct(refitted, channels, units, [(x,)]) == 0
    assert all(torch.equal(value, refitted.state_dict()[name]) for name, value in plain.state_dict().items())


def test_the_technique_refits_unless_told_not_to(digits_task: hasten.Task) -> None:
    graph = hasten.capture(digits_task.model, digits_task.example)
    inputs = torch.cat([x for x, _ in digits_task.holdout])

    def error(samples: int) -> float:
        pruned = hasten.PruneFilters(0.4, reconstruct=samples).apply(graph, digits_task)
        with torch.no_grad():
            return relative(pruned(inputs), graph(inputs))

    assert error(512) < 0.5 * error(0)
    assert error(512) == error(512)


def test_least_squares_finds_the_map_and_keeps_what_is_good_enough() -> None:
    torch.manual_seed(0)
    z, true, shift = torch.randn(400, 10).double(), torch.randn(4, 10).double(), torch.randn(4).double()
    halves = []
    for part in z.split(200):
        moments = Moments.zero(10, 4)
        for rows in part.split(50):
            moments.add(rows, rows @ true.mT + shift)
        halves.append(moments)
    found = refit(torch.zeros(4, 10), halves[0], halves[1], torch.ones(4), shifted=True)
    torch.testing.assert_close(found.weight, true, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.shift, shift, atol=1e-3, rtol=1e-3)
    kept = refit(true, halves[0], halves[1], torch.ones(4), shifted=True)
    torch.testing.assert_close(kept.weight, true, atol=1e-9, rtol=0)
    assert float(found.squared_error(halves[1]).max()) < 1e-5


def test_rows_that_say_nothing_change_nothing() -> None:
    """Fewer rows than inputs, and noise for an answer: no ridge is better on other rows, so the weight stays."""
    torch.manual_seed(0)
    halves = []
    before = torch.randn(3, 40).double()
    for _ in range(2):
        moments, z = Moments.zero(40, 3), torch.randn(30, 40).double()
        moments.add(z, z @ before.mT + torch.randn(30, 3).double())
        halves.append(moments)
    found = refit(before, halves[0], halves[1], torch.ones(3), shifted=False)
    assert found.ridge is None
    assert torch.equal(found.weight, before)
    assert not found.shift.any()


def test_a_frontier_gives_the_graphs_values_and_holds_only_what_is_read_later() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 16, 16)
    graph = hasten.capture(Residual().eval(), (x[:2],))
    frontier = Frontier(graph, [(x[:4],), (x[4:],)])
    wanted = values(graph, (x,))
    held = []
    for node in frontier.nodes:
        if node.name in wanted and node.op == "call_function":
            torch.testing.assert_close(torch.cat(frontier.behind(node.name)), wanted[node.name])
            held.append(frontier.held_bytes())
    everything = sum(v.nbytes for v in wanted.values())
    assert max(held) < everything / 2
    assert held[-1] < everything / 50


def test_batches_are_taken_while_they_fit() -> None:
    x = torch.randn(8, 3, 16, 16)
    graph = hasten.capture(Residual().eval(), (x[:2],))
    batches = [(part,) for part in x.split(2)]
    assert len(affordable(graph, batches, 1e9)) == 4
    assert len(affordable(graph, batches, 1)) == 1
    frontier, most = Frontier(graph, batches[:1]), 0
    for node in frontier.nodes:
        frontier.behind(node.name)
        most = max(most, frontier.held_bytes())
    assert len(affordable(graph, batches, 2.5 * most)) == 2


def test_every_unit_that_is_left_keeps_its_place() -> None:
    """Outputs are compared at the positions that stay, wherever in the layer these are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Identity(), nn.Linear(12, 9), nn.Identity(), nn.Linear(9, 2)).double()
    x = torch.randn(256, 6).double()
    graph = hasten.capture(model.eval(), (x[:2],))
    channels = find_channels(graph)
    first, second = (g for g in channels.groups if g.kind == "neuron")
    units = [*first.units[1:12:2], *second.units[::4]]  # six inputs are said by six neurons
    refitted = remove(channels, units)
    reconstruct(refitted, channels, units, [(x,)])
    with torch.no_grad():
        inner = values(refitted, (x,), ["linear_1"])["linear_1"]
        wanted = values(graph, (x,), ["linear_1"])["linear_1"]
    stay = [i for i in range(9) if i % 4]
    assert relative(inner, wanted[:, stay]) < 1e-3
    assert attribute(refitted, "2.weight").dtype == torch.float64
