import pytest
import torch
from torch import Tensor, nn

import hasten
from hasten.errors import InvalidInput, Unsupported
from hasten.graph.blocks import find_blocks
from hasten.recipe import Recipe, make_target
from hasten.task import Task
from hasten.techniques.shrink import Shrink


class Block(nn.Module):
    def __init__(self, size: float) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        with torch.no_grad():
            self.linear.weight.mul_(size)
            self.linear.bias.mul_(size)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.linear(x)
        return output


SIZES = [1.0, 0.01, 2.0, 0.02, 3.0]


@pytest.fixture
def task() -> Task:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), *(Block(size) for size in SIZES), nn.Linear(6, 3))
    x = torch.randn(16, 4)
    return Task(model, (x[:4],), [x])


@pytest.mark.parametrize("importance", ["cosine", "output"])
def test_leaves_out_the_blocks_that_change_least(task: Task, importance: str) -> None:
    graph = hasten.capture(task.model, task.example)
    shorter = Shrink(depth=0.6, importance=importance).apply(graph, task)  # type: ignore[arg-type]
    kept = {name.split(".")[0] for name, _ in shorter.named_parameters()}
    assert kept == {"0", "1", "3", "5", "6"}
    assert len(find_blocks(graph)) == 5
    x = task.example[0]
    torch.testing.assert_close(shorter(x), task.model(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(("depth", "left"), [(0.0, 0), (0.2, 1), (0.5, 3), (0.6, 3), (0.79, 4)])
def test_depth_is_the_share_that_stays(task: Task, depth: float, left: int) -> None:
    graph = hasten.capture(task.model, task.example)
    assert len(find_blocks(Shrink(depth=depth).apply(graph, task))) == left


def test_shrinks_again(task: Task) -> None:
    graph = hasten.capture(task.model, task.example)
    once = Shrink(depth=0.6).apply(graph, task)
    assert len(find_blocks(Shrink(depth=0.5).apply(once, task))) == 2


def test_refusals(task: Task) -> None:
    graph = hasten.capture(task.model, task.example)
    with pytest.raises(Unsupported, match="leave out nothing"):
        Shrink(depth=0.9).apply(graph, task)
    with pytest.raises(Unsupported, match="has 0 residual blocks"):
        Shrink(width=0.5).apply(hasten.capture(nn.Linear(4, 3), task.example), task)
    with pytest.raises(InvalidInput, match=r"`depth` must be in \[0.0, 1.0\]"):
        Shrink(depth=1.1)


def test_width_keeps_the_heaviest_units() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(4, 8), nn.Linear(8, 6)
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(6, 3))
    scale = torch.tensor([1.0, 1e-3, 1.0, 1e-3, 1.0, 1e-3, 1.0, 1.0])
    with torch.no_grad():
        first.weight.mul_(scale[:, None])
        first.bias.mul_(scale)
        second.weight.mul_(scale)
    x = torch.randn(16, 4)
    task = Task(model, (x[:4],), [x])
    graph = hasten.capture(model, task.example)
    narrow = Shrink(width=0.6).apply(graph, task)
    assert {name: tuple(value.shape) for name, value in narrow.named_parameters() if "weight" in name} == {
        "0.weight": (5, 4),
        "2.weight": (4, 5),
        "4.weight": (3, 4),
    }
    assert torch.equal(narrow.get_parameter("0.weight"), first.weight[scale == 1])
    assert narrow(x).shape == (16, 3)


def test_depth_and_width_together(task: Task) -> None:
    graph = hasten.capture(task.model, task.example)
    smaller = Shrink(depth=0.6, width=0.5).apply(graph, task)
    assert smaller.get_parameter("6.weight").shape == (3, 3)
    assert len(find_blocks(smaller)) == 3
    assert smaller(torch.randn(5, 4)).shape == (5, 3)


def test_recipe_with_distillation_after_it(task: Task) -> None:
    recipe = Recipe((Shrink(depth=0.6), hasten.Distill(epochs=2)), make_target("null"))
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    graph = hasten.capture(task.model, task.example)
    for step in recipe.steps:
        graph = step.apply(graph, task)
    assert len(find_blocks(graph)) == 3
