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
    with pytest.raises(Unsupported, match="leaves out no block"):
        Shrink(depth=0.9).apply(graph, task)
    with pytest.raises(Unsupported, match="has 0 residual blocks"):
        Shrink().apply(hasten.capture(nn.Linear(4, 3), task.example), task)
    with pytest.raises(InvalidInput, match=r"`depth` must be in \[0.0, 1.0\)"):
        Shrink(depth=1.0)


def test_recipe_with_distillation_after_it(task: Task) -> None:
    recipe = Recipe((Shrink(depth=0.6), hasten.Distill(epochs=2)), make_target("null"))
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    graph = hasten.capture(task.model, task.example)
    for step in recipe.steps:
        graph = step.apply(graph, task)
    assert len(find_blocks(graph)) == 3
