"""Scores, selection, schedules, masks, widths: small networks where the right answer is known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.errors import Unsupported
from hasten.graph.capture import capture
from hasten.graph.channels import Channels, find_channels
from hasten.pruning import masks
from hasten.pruning.importance import IMPORTANCES, normalised, unit_scores
from hasten.pruning.schedule import shares
from hasten.pruning.selection import lowest_overall, settled
from hasten.pruning.sensitivity import allocate, sensitivity
from hasten.pruning.sparsity import sparsity_report
from hasten.pruning.structured import Cutting, Further, cut
from hasten.pruning.widths import worthwhile
from hasten.task import Task


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b, self.fc = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.bn(self.a(x))))).mean((2, 3)))


def task_of(model: nn.Module, batches: int = 3) -> Task:
    torch.manual_seed(1)
    data = [(torch.randn(4, 2, 8, 8), torch.randint(0, 3, (4,))) for _ in range(batches)]
    return Task(model, (data[0][0],), holdout=data)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def analysed(net: nn.Module) -> Channels:
    return find_channels(capture(net, (torch.randn(2, 2, 8, 8),)))


def test_activation_norms_cover_every_batch(net: Net) -> None:
    task, channels = task_of(net), analysed(net)
    group = next(g for g in channels.groups if g.name == "b")
    with torch.no_grad():
        maps = torch.cat([F.relu(net.b(F.relu(net.bn(net.a(x))))).mean((2, 3)) for x, _ in task.holdout])
    scores = unit_scores(channels, [group], "activation_l2", task)
    expected = maps.double().square().mean(0).sqrt()
    assert [scores[u.id] for u in group.units] == pytest.approx(expected.tolist(), rel=1e-5)
    scores = unit_scores(channels, [group], "activation_l1", task)
    assert [scores[u.id] for u in group.units] == pytest.approx(maps.abs().mean(0).tolist(), rel=1e-5)


def test_weight_norm_covers_all_weights_that_leave_together(net: Net) -> None:
    channels = analysed(net)
    group = next(g for g in channels.groups if g.name == "a")
    scores = unit_scores(channels, [group], "weight_l1", task_of(net))
    expected = net.a.weight.abs().sum((1, 2, 3)) + net.b.weight.abs().sum((0, 2, 3))
    assert [scores[u.id] for u in group.units] == pytest.approx(expected.tolist(), rel=1e-5)


def test_batch_norm_scale_needs_a_batch_norm(net: Net) -> None:
    with torch.no_grad():
        net.bn.weight.copy_(torch.arange(6.0) - 3)
    channels = analysed(net)
    a, b = (next(g for g in channels.groups if g.name == name) for name in "ab")
    assert [*unit_scores(channels, [a], "bn_scale", task_of(net)).values()] == [3, 2, 1, 0, 1, 2]
    with pytest.raises(Unsupported, match="b has none"):
        unit_scores(channels, [a, b], "bn_scale", task_of(net))


def test_taylor_is_zero_for_a_filter_that_nothing_reads(net: Net) -> None:
    with torch.no_grad():
        net.fc.weight[:, 5] = 0
        net.b.weight[5] = 0
        assert net.b.bias is not None
        net.b.bias[5] = 0
    channels = analysed(net)
    group = next(g for g in channels.groups if g.name == "b")
    scores = [*unit_scores(channels, [group], "taylor", task_of(net)).values()]
    assert scores[5] == 0
    assert min(scores[:5] + scores[6:]) > 0


def test_geometric_median_finds_the_filter_that_others_can_replace(net: Net) -> None:
    with torch.no_grad():
        net.b.weight[2] = net.b.weight.mean(0)
    channels = analysed(net)
    group = next(g for g in channels.groups if g.name == "b")
    scores = unit_scores(channels, [group], "fpgm", task_of(net))
    assert min(group.units, key=lambda u: scores[u.id]) == group.units[2]


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_scores_do_not_depend_on_how_data_is_batched(net: Net, importance: Any) -> None:
    if importance == "taylor":
        pytest.skip("its square is taken per batch")
    task = task_of(net)
    whole = replace(task, holdout=[tuple(torch.cat(x) for x in zip(*task.holdout, strict=True))])
    channels = analysed(net)
    groups = [g for g in channels.groups if g.name == "a"]
    one, other = (unit_scores(channels, groups, importance, t) for t in (task, whole))
    assert list(one.values()) == pytest.approx(list(other.values()), rel=1e-5)


def test_global_choice_compares_normalised_scores(net: Net) -> None:
    channels = analysed(net)
    scores = {u.id: (100.0 if g.name == "a" else 1.0) * (1 + i) for g in channels.groups for i, u in enumerate(g.units)}
    chosen = lowest_overall(channels.groups, scores, 4, {"a": 5, "b": 7})
    assert {g.name: sum(u in g.units for u in chosen) for g in channels.groups} == {"a": 2, "b": 2}
    assert sum(normalised(scores, channels.groups)[u.id] for u in channels.groups[0].units) == pytest.approx(6)


def test_widths_are_rounded_up_and_never_emptied(net: Net) -> None:
    channels = analysed(net)
    group = next(g for g in channels.groups if g.name == "b")
    scores = {u.id: float(i) for i, u in enumerate(group.units)}
    left = settled(channels, group.units[:5], scores, lambda layer, width: width + -width % 4)
    assert left == list(group.units[:4])
    everything = settled(channels, group.units, scores, lambda layer, width: width)
    assert everything == list(group.units[:-1])


def test_worthwhile_widths_are_faster_than_every_wider_one() -> None:
    assert worthwhile({64: 1.0, 60: 1.0, 56: 1.2, 48: 0.8, 40: 0.9, 32: 0.5}) == (32, 48, 64)


def test_cut_to_listed_widths(net: Net) -> None:
    cutting = Cutting(frozenset({"filter"}), "weight_l2", "layer", widths={"b": (6, 8), "a": (4,)})
    state = cut(capture(net, (torch.randn(2, 2, 8, 8),)), task_of(net), cutting, 0.5).state_dict()
    assert (state["a.weight"].shape[0], state["b.weight"].shape[0]) == (4, 6)


def test_schedules_end_at_the_goal() -> None:
    assert shares(0.8, 4, "linear") == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert shares(0.8, 4, "cubic") == pytest.approx([0.8 * (1 - x**3) for x in (0.75, 0.5, 0.25, 0)])
    assert shares(0.8, 4, "one-shot") == [0.8]


def test_magnitude_masks() -> None:
    weights = {"a": torch.tensor([[1.0, -4.0], [3.0, 2.0]]), "b": torch.tensor([[10.0, 20.0], [30.0, 0.5]])}
    assert masks.by_share(weights, 0.5, 2, 1, together=True)["b"].tolist() == [[True, True], [True, False]]
    assert masks.by_share(weights, 0.5, 2, 1, together=False)["b"].tolist() == [[False, True], [True, False]]
    assert masks.by_threshold(weights, 2.5, 1, 1)["a"].tolist() == [[False, True], [True, False]]


def test_blocks_become_zero_together() -> None:
    weight = torch.tensor([[5.0, 0.0, 2.0, 2.0, 9.0]])
    mask = masks.by_share({"w": weight}, 0.34, 1, 2, together=True)["w"]
    assert mask.tolist() == [[True, True, False, False, True]]
    mask = masks.by_share({"w": weight}, 0.34, 2, 2, together=True)["w"]
    assert mask.tolist() == [[True, True, False, False, True]]


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 4), (4, 8)])
def test_pattern_keeps_the_largest_of_every_run(keep: int, of: int) -> None:
    weight = torch.randn(5, 18, 3, 3)
    mask = masks.by_pattern({"w": weight}, keep, of)["w"]
    runs = mask[:, : 18 // of * of].movedim(1, -1).reshape(5, 3, 3, -1, of)
    assert (runs.sum(-1) == keep).all()
    assert mask[:, 18 // of * of :].all()
    values = weight[:, : 18 // of * of].movedim(1, -1).reshape(runs.shape).abs()
    assert (torch.where(runs, values, torch.inf).amin(-1) >= torch.where(runs, 0, values).amax(-1)).all()


def test_sparsity_report_counts_and_compresses(net: Net) -> None:
    graph = capture(net, (torch.randn(2, 2, 8, 8),))
    dense = sparsity_report(graph)
    masks.apply_masks(graph, masks.by_pattern({"b.weight": graph.state_dict()["b.weight"]}, 2, 4))
    sparse = sparsity_report(graph)
    assert dense.sparsity == 0
    assert {x.name: x.two_of_four for x in sparse.layers} == {"a.weight": False, "b.weight": True, "fc.weight": False}
    assert sparse.compressed_bytes < dense.compressed_bytes
    assert "No zero pays on a CPU" in str(sparse)


def test_sensitivity_is_cached_until_the_weights_change(net: Net, tmp_path: Any) -> None:
    graph, task = capture(net, (torch.randn(2, 2, 8, 8),)), task_of(net)
    cutting = Cutting(frozenset({"filter"}), "weight_l2")
    first = sensitivity(graph, task, cutting, (0.5,), tmp_path / "cache.json")
    assert set(first) == {"a", "b"}
    written = (tmp_path / "cache.json").read_text()
    assert sensitivity(graph, replace(task, holdout=[]), cutting, (0.5,), tmp_path / "cache.json") == first
    with torch.no_grad():
        graph.state_dict()["a.weight"].mul_(2)
    sensitivity(graph, task, cutting, (0.5,), tmp_path / "cache.json")
    assert (tmp_path / "cache.json").read_text() != written


def test_allocation_takes_the_cheapest_millisecond_first() -> None:
    curves = {"cheap": {0.25: 0.0, 0.5: 0.01}, "dear": {0.25: 0.1, 0.5: 0.3}}
    found, latency = allocate(curves, lambda s: 10 - 4 * s.get("cheap", 0) - 8 * s.get("dear", 0), 7.5)
    assert found == {"cheap": 0.5, "dear": 0.25}
    assert latency == pytest.approx(6.0)
    assert np.isclose(allocate(curves, lambda s: 10.0, 5)[1], 10.0)


@pytest.mark.parametrize("together", [False, True])
def test_equal_weights_go_no_further_than_the_share(together: bool) -> None:
    weights = {"constant": torch.ones(4, 10), "rounded": torch.arange(40.0).reshape(4, 10) // 20 + 1}
    found = masks.by_share(weights, 0.25, 1, 1, together)
    assert sum(int((~mask).sum()) for mask in found.values()) == 20
    if not together:
        assert {int((~mask).sum()) for mask in found.values()} == {10}
    gone = masks.by_share({"sparse": torch.tensor([[0.0, 0.0, 0.0, 1.0]])}, 0.25, 1, 1, together)
    assert gone["sparse"].tolist() == [[False, False, False, True]]  # what is zero stays zero


def test_a_share_of_zero_for_all_and_more_for_some(net: Net) -> None:
    """Iterative pruning with `ratio=0` and `ratios`: the shares of the named ones grow."""
    cutting = Cutting(frozenset({"filter"}), "weight_l2", ratios={"a": 0.5})
    cut_further = Further(task_of(net), cutting, 0.0)(capture(net, (torch.randn(2, 2, 8, 8),)), 0.0)
    assert cut_further.state_dict()["a.weight"].shape[0] == 3
