"""What the groups are, on small networks where the answer is known."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.errors import InvalidInput
from hasten.graph.capture import capture, has_dynamic_batch, placeholders
from hasten.graph.channels import Channels, Group, find_channels
from hasten.graph.cost import node_costs, reach, total_macs
from hasten.graph.surgery import remove, run_masked, zero_parameters


def channels_of(model: nn.Module, *shape: int) -> Channels:
    torch.manual_seed(0)
    return find_channels(capture(model, (torch.randn(2, *shape),)))


def by_name(channels: Channels) -> dict[str, Group]:
    return {group.name: group for group in channels.groups}


def assert_each_goes_exactly(channels: Channels, x: Tensor) -> None:
    for unit in (unit for group in channels.groups for unit in group.units):
        torch.testing.assert_close(remove(channels, [unit])(x), run_masked(channels, [unit], (x,))[0])


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(x + self.b(F.relu(x)))


class Attention(nn.Module):
    def __init__(self, heads: int = 3, kv: int = 3) -> None:
        super().__init__()
        self.heads, self.kv = heads, kv
        self.q, self.k, self.v = nn.Linear(8, heads * 4), nn.Linear(8, kv * 4), nn.Linear(8, kv * 4)
        self.out = nn.Linear(heads * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q = self.q(x).view(n, t, self.heads, 4).transpose(1, 2)
        k, v = (f(x).view(n, t, self.kv, 4).transpose(1, 2) for f in (self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.kv != self.heads)
        return self.out(y.transpose(1, 2).reshape(n, t, self.heads * 4))


def test_residual_addition_ties_producers() -> None:
    group = by_name(channels_of(Residual(), 3, 8, 8))["a"]
    touched = {(s.parameter, s.dim) for s in group.units[2].slices}
    assert touched == {("a.weight", 0), ("a.bias", 0), ("b.weight", 0), ("b.weight", 1), ("b.bias", 0), ("c.weight", 1)}
    assert all(s.indices == (2,) for s in group.units[2].slices)
    assert (group.kind, group.approximate, len(group.units)) == ("filter", False, 6)


def test_attention_has_heads_and_head_dimensions() -> None:
    groups = channels_of(Attention(), 6, 8).groups
    assert {(g.kind, len(g.units)) for g in groups} == {("head", 3), ("head size", 4)}
    head = next(g for g in groups if g.kind == "head").units[1]
    assert {(s.parameter, s.dim): s.indices for s in head.slices}["out.weight", 1] == (4, 5, 6, 7)


def test_grouped_queries_leave_with_their_key_head() -> None:
    groups = channels_of(Attention(heads=4, kv=2), 6, 8).groups
    head = next(g for g in groups if g.kind == "head").units[0]
    sizes = {(s.parameter, s.dim): len(s.indices) for s in head.slices}
    assert (sizes["q.weight", 0], sizes["k.weight", 0]) in {(8, 4), (4 * 2, 0)}


def test_as_many_key_heads_as_a_head_is_wide() -> None:
    channels = channels_of(Attention(heads=8, kv=4), 6, 8)
    assert not channels.uncovered
    assert_each_goes_exactly(channels, torch.randn(2, 6, 8))


@pytest.mark.parametrize("tokens", [2, 6])
def test_attention_keeps_its_scale_when_heads_become_smaller(tokens: int) -> None:
    channels = channels_of(Attention(), tokens, 8)
    units, x = next(g for g in channels.groups if g.kind == "head size").units[1:3], torch.randn(2, tokens, 8)
    torch.testing.assert_close(remove(channels, units)(x), run_masked(channels, units, (x,))[0])


def test_uneven_padding_of_rows_and_channels_is_cut_where_it_was_put() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 11, 1), nn.Conv2d(11, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            wide = F.pad(self.a(x), (0, 0, 1, 0, 2, 3))
            return self.c(wide + F.relu(self.b(F.pad(x, (0, 0, 1, 0)))))

    channels = channels_of(Padded(), 3, 8, 8)
    assert_each_goes_exactly(channels, torch.randn(2, 3, 8, 8))
    sizes = {(s.parameter, s.dim) for g in channels.groups for u in g.units for s in u.slices}
    assert {("a.weight", 0), ("b.weight", 0), ("c.weight", 1)} <= sizes


class ByHand(Attention):
    """The same attention as two products."""

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (f(x).view(n, t, self.heads, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v
        return self.out(y.transpose(1, 2).reshape(n, t, self.heads * 4))


class OneHead(ByHand):
    """Of three dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        return self.out(torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v)


class Picked(nn.Module):
    """Pixels picked by their rows and columns, side by side and apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Conv2d(3, 6, 1), nn.Linear(6, 2)
        self.register_buffer("rows", torch.tensor([0, 3, 5]))
        self.register_buffer("columns", torch.tensor([2, 2, 7]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        side_by_side = y[:, :, self.rows, self.columns].transpose(1, 2)
        apart = y.transpose(1, 2)[:, self.rows, :, self.columns].transpose(0, 1)
        selected = y.index_select(2, self.rows).mean(3).transpose(1, 2)
        return self.out(side_by_side + 2 * apart + selected)


class Mixed(nn.Module):
    """Channels added up by a vector of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mix = nn.Conv2d(3, 6, 1), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.mix @ F.relu(self.a(x)).flatten(2)


@pytest.mark.parametrize(
    ("model", "shape", "groups"),
    [
        (ByHand(), (6, 8), [("head", 3), ("head size", 4), ("head size", 4)]),
        (OneHead(), (6, 8), [("neuron", 12), ("neuron", 12)]),
        (Picked(), (3, 8, 8), [("filter", 6)]),
        (Mixed(), (3, 8, 8), [("filter", 6)]),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)
def test_every_unit_is_found_and_goes_exactly(
    model: nn.Module, shape: tuple[int, ...], groups: list[tuple[str, int]]
) -> None:
    channels = channels_of(model, *shape)
    assert sorted((g.kind, len(g.units)) for g in channels.groups) == groups
    assert_each_goes_exactly(channels, torch.randn(2, *shape))


def test_outputs_and_inputs_stay() -> None:
    channels = channels_of(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), 6)
    assert [(g.name, len(g.units)) for g in channels.groups] == [("0", 8)]
    assert channels.why_frozen("linear_1", 1) == {"it is an output of the model"}


def test_normalised_residual_stream_is_approximate() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.up, self.down, self.out = (
                nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 2),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.out(x + self.down(F.gelu(self.up(self.norm(x)))))

    assert {g.name: g.approximate for g in channels_of(Block(), 4).groups} == {"a": True, "up": False}


def test_unknown_operator_freezes_only_what_meets_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.renorm(self.b(F.relu(self.a(x))), 2, 0, 100.0))

    channels = channels_of(Net(), 4)
    assert [g.name for g in channels.groups] == ["a"]
    assert list(channels.uncovered.values()) == ["operator aten.renorm.default has no rule"]


def test_removal_leaves_the_original_alone_and_keeps_the_batch_symbolic() -> None:
    channels = channels_of(Residual(), 3, 8, 8)
    before = {k: v.clone() for k, v in channels.graph.state_dict().items()}
    pruned = remove(channels, channels.groups[0].units[:3])
    assert all(torch.equal(v, before[k]) for k, v in channels.graph.state_dict().items())
    assert pruned.state_dict()["b.weight"].shape == (3, 3, 3, 3)
    assert has_dynamic_batch(pruned)
    assert pruned(torch.randn(5, 3, 8, 8)).shape == (5, 4, 8, 8)
    assert isinstance(placeholders(pruned)[0].meta["val"].shape[0], torch.SymInt)
    shapes = {n.name: tuple(n.meta["val"].shape)[1:] for n in pruned.graph.nodes if n.op == "call_function"}
    assert shapes["conv2d"] == (3, 8, 8)


def test_pruned_graph_can_be_analysed_and_pruned_again() -> None:
    channels = channels_of(Residual(), 3, 8, 8)
    again = find_channels(remove(channels, channels.groups[0].units[:3]))
    assert len(again.groups[0].units) == 3
    assert remove(again, again.groups[0].units[:2]).state_dict()["a.weight"].shape[0] == 1


def test_root_mean_square_of_what_stays_is_exact_also_when_cut_twice() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.out = nn.Linear(4, 9), nn.RMSNorm(9, eps=0.1), nn.Linear(9, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.out(self.norm(x) + x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 0.1))

    channels = channels_of(Block(), 4)
    assert [(g.name, g.approximate) for g in channels.groups] == [("a", False)]
    units, x = channels.groups[0].units, torch.randn(3, 4)
    once = find_channels(remove(channels, units[6:]))
    twice = remove(once, once.groups[0].units[4:])
    (zeroed,) = run_masked(channels, units[4:], (x,))
    torch.testing.assert_close(twice(x), zeroed)


def test_removing_all_units_of_a_dimension_is_refused() -> None:
    channels = channels_of(Residual(), 3, 8, 8)
    with pytest.raises(InvalidInput, match="at least one position"):
        remove(channels, channels.groups[0].units)


def test_zeroing_parameters_gives_the_same_output() -> None:
    channels = find_channels(
        capture(Residual().double(), (torch.randn(2, 3, 8, 8).double(),))
    )  # fmt: skip
    units = channels.groups[0].units[1:4]
    x = torch.randn(2, 3, 8, 8).double()
    torch.testing.assert_close(remove(channels, units)(x), zero_parameters(channels, units)(x), rtol=1e-9, atol=1e-12)


def test_macs_and_bytes_of_a_convolution() -> None:
    graph = capture(nn.Conv2d(3, 6, 3, padding=1), (torch.randn(2, 3, 8, 8),))
    cost = node_costs(graph)["conv2d"]
    assert cost.macs == 8 * 8 * 6 * 3 * 9
    assert cost.size_bytes == 4 * (8 * 8 * 3 + 6 * 3 * 9 + 6 + 8 * 8 * 6)
    assert total_macs(graph) == cost.macs


def test_reach_leaves_out_what_the_interface_fixes() -> None:
    found = reach(channels_of(nn.Linear(6, 3), 6))
    assert (found.macs, found.fixed_macs, found.exact_macs) == (18, 18, 0)
