"""The three pruning techniques from the outside."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

import hasten
from hasten.errors import InvalidInput, Unsupported
from hasten.graph.channels import attribute
from hasten.graph.cost import total_macs
from hasten.pruning.sparsity import sparsity_report
from hasten.recipe import Recipe, Technique, make_target, make_technique
from hasten.task import Task
from hasten.techniques.prune_filters import PruneFilters
from hasten.techniques.prune_neurons import PruneNeurons
from hasten.techniques.prune_weights import PruneWeights


class Small(nn.Module):
    """Convolutions with a residual, then attention and a gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.qkv, self.out, self.up, self.down = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 24), nn.Linear(12, 8)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(self.a(x)))
        x = (x + self.c(x)).flatten(2).transpose(1, 2)
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, 4, 2).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, 8))
        return self.fc((x + self.down(F.glu(self.up(x)))).mean(1))


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    """Bright left or bright right halves."""
    made = []
    for _ in range(count):
        y = torch.randint(0, 2, (16,))
        x = torch.randn(16, 1, 8, 8) * 0.5
        x[y == 0, :, :, :4] += 1
        x[y == 1, :, :, 4:] += 1
        made.append((x, y))
    return made


@pytest.fixture(scope="module")
def trained() -> tuple[GraphModule, Task]:
    torch.manual_seed(0)
    model = Small()
    train = batches(12)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for x, y in train * 3:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    task = Task(model.eval(), (train[0][0],), holdout=batches(4), train=train)
    return hasten.capture(model, task.example), task


def accuracy(graph: GraphModule, task: Task) -> float:
    with torch.no_grad():
        return float(torch.cat([(graph(x).argmax(1) == y).float() for x, y in task.holdout]).mean())


@pytest.mark.parametrize(
    "technique",
    [
        PruneFilters(0.5, "activation_l2"),
        PruneFilters(0.5, "taylor", "layer"),
        PruneFilters(0.5, "weight_l1", round_to=4),
        PruneNeurons(0.5),
        PruneNeurons(0.3, "weight_l2", heads=False),
    ],
)
def test_structured_pruning_makes_the_graph_smaller(trained: Any, technique: Technique) -> None:
    graph, task = trained
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    pruned = technique.apply(graph, task)
    assert total_macs(pruned) < 0.97 * total_macs(graph)
    assert pruned(task.example[0]).shape == (16, 2)
    assert all(torch.equal(value, before[name]) for name, value in graph.state_dict().items())


def test_layer_scope_takes_the_share_of_every_layer(trained: Any) -> None:
    graph, task = trained
    assert PruneFilters(0.5, "weight_l2", "layer").apply(graph, task).state_dict()["a.weight"].shape[0] == 4


def test_heads_can_be_pruned_alone(trained: Any) -> None:
    graph, task = trained
    state = PruneNeurons(0.5, neurons=False).apply(graph, task).state_dict()
    assert state["qkv.weight"].shape == (12, 8)
    assert state["out.weight"].shape == (8, 4)
    assert state["up.weight"].shape == (24, 8)


def test_named_ratios_cut_only_these_groups(trained: Any) -> None:
    graph, task = trained
    state = PruneNeurons(ratios=(("up", 0.5),)).apply(graph, task).state_dict()
    assert state["down.weight"].shape == (8, 6)
    assert state["qkv.weight"].shape == (24, 8)
    with pytest.raises(InvalidInput, match="'upp'"):
        PruneNeurons(ratios=(("upp", 0.5),)).apply(graph, task)


def test_iterative_pruning_recovers_and_ends_at_the_ratio(trained: Any) -> None:
    graph, task = trained
    once = PruneFilters(0.75, "activation_l2", "layer").apply(graph, task)
    steps = PruneFilters(0.75, "activation_l2", "layer", schedule="cubic", steps=3, epochs=2).apply(graph, task)
    assert steps.state_dict()["a.weight"].shape == once.state_dict()["a.weight"].shape == (2, 1, 3, 3)
    assert accuracy(steps, task) >= accuracy(graph, task) - 0.1


def test_iterative_pruning_rolls_back_to_the_last_good_step(trained: Any) -> None:
    graph, task = trained
    options: Any = {"schedule": "linear", "steps": 3, "epochs": 1, "lr": 1e-9, "scope": "layer"}
    kept = PruneWeights(0.999, max_drop=0.25, remove_dead=False, **options).apply(graph, task)
    assert 0.3 < sparsity_report(kept).sparsity < 0.9
    assert accuracy(kept, task) >= accuracy(graph, task) - 0.25
    with pytest.raises(Unsupported, match="already a share of"):
        PruneWeights(0.99, epochs=1, lr=1e-9, max_drop=0.0).apply(graph, task)


@pytest.mark.parametrize("scope", ["global", "layer", "2:4"])
def test_zeros_stay_zero_through_training(trained: Any, scope: Any) -> None:
    graph, task = trained
    cut = PruneWeights(0.5, scope=scope, remove_dead=False).apply(graph, task)
    tuned = PruneWeights(0.5, scope=scope, epochs=1, remove_dead=False).apply(graph, task)
    assert sparsity_report(cut).sparsity == pytest.approx(0.5, abs=0.06)
    for layer in sparsity_report(cut).layers:
        zeros = attribute(cut, layer.name) == 0
        assert (attribute(tuned, layer.name)[zeros] == 0).all()
        assert not torch.equal(attribute(cut, layer.name), attribute(tuned, layer.name))


def test_threshold_zeroes_what_is_below_it(trained: Any) -> None:
    graph, task = trained
    pruned = PruneWeights(threshold=0.1, remove_dead=False).apply(graph, task)
    weight = attribute(graph, "up.weight")
    assert torch.equal(attribute(pruned, "up.weight"), torch.where(weight.abs() < 0.1, 0.0, weight))


def test_neurons_left_without_effect_are_removed(trained: Any) -> None:
    graph, task = trained
    with torch.no_grad():
        attribute(graph, "down.weight")[:, 3] = 0
    pruned = PruneWeights(0.0).apply(graph, task)
    assert pruned.state_dict()["down.weight"].shape == (8, 11)
    torch.testing.assert_close(pruned(*task.example), graph(*task.example))


def test_nothing_to_prune_is_unsupported() -> None:
    model = nn.Linear(4, 2)
    task = Task(model, (torch.randn(2, 4),), holdout=[torch.randn(2, 4)])
    graph = hasten.capture(model, task.example)
    for technique in (PruneFilters(), PruneNeurons()):
        with pytest.raises(Unsupported, match="this graph has none"):
            technique.apply(graph, task)


def test_options_state_their_rules() -> None:
    with pytest.raises(InvalidInput, match=r"`ratio` must be in \[0.0, 1.0\), but got 1.2"):
        PruneFilters(ratio=1.2)
    with pytest.raises(InvalidInput, match="must not all be false"):
        PruneNeurons(neurons=False, heads=False)
    with pytest.raises(InvalidInput, match="fixes which weights stay"):
        PruneWeights(scope="2:4", threshold=0.1)
    with pytest.raises(InvalidInput, match="share in"):
        PruneFilters(ratios=(("a", 2.0),))
    with pytest.raises(InvalidInput, match="positive integers"):
        PruneFilters(widths=(("a", (0,)),))


def test_recipes_write_and_read_pruning() -> None:
    steps = (PruneFilters(0.4, ratios=(("a", 0.5),), widths=(("a", (8, 16)),)), PruneNeurons(), PruneWeights())
    recipe = Recipe(steps, make_target("null"))
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert make_technique("prune_filters", {"ratio": 0.5}) == PruneFilters(0.5)
