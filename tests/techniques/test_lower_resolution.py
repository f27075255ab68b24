import pytest
import torch
from torch import Tensor, nn

import hasten
from hasten.errors import Unsupported
from hasten.graph.cost import node_costs
from hasten.recipe import Recipe, make_target
from hasten.task import Task
from hasten.techniques.lower_resolution import LowerResolution


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        y: Tensor = self.last(x.mean((2, 3)))
        return y


def _task(model: nn.Module, side: int = 32) -> Task:
    torch.manual_seed(0)
    x = torch.nn.functional.interpolate(torch.randn(12, 3, 4, 4), (side, side), mode="bilinear")
    return Task(model.eval(), (x[:4],), [x])


def test_computes_on_fewer_pixels_and_takes_the_same_images() -> None:
    torch.manual_seed(0)
    task = _task(Pooled())
    graph = hasten.capture(task.model, task.example)
    smaller = LowerResolution(side=0.75).apply(graph, task)

    def macs(g: torch.fx.GraphModule) -> int:
        return sum(cost.macs for cost in node_costs(g).values())

    assert macs(smaller) == pytest.approx(macs(graph) * 0.75**2, rel=0.02)
    x = torch.cat([task.example[0]] * 2)
    expected = task.model(torch.nn.functional.interpolate(x, (24, 24), mode="bilinear"))
    torch.testing.assert_close(smaller(x), expected)
    # Smooth images look the same at a smaller size.
    torch.testing.assert_close(smaller(x), task.model(x), rtol=0.1, atol=0.05)
    torch.testing.assert_close(graph(x), task.model(x))


def test_the_scaled_network_compiles(tmp_path: object) -> None:
    task = _task(Pooled())
    graph = hasten.capture(task.model, task.example)
    step = LowerResolution(side=0.75)
    recipe = Recipe((step,), make_target("onnxruntime"))
    artifact = hasten.apply(recipe, task, f"{tmp_path}/a.hasten")
    expected = step.apply(graph, task)(*task.example)
    found = hasten.load(artifact.path)(task.example[0].numpy())
    torch.testing.assert_close(torch.from_numpy(found[0]), expected, rtol=1e-4, atol=1e-5)


def test_refuses_a_network_that_is_fixed_to_its_size() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Flatten(), nn.Linear(4 * 16 * 16, 4))
    task = _task(model)
    with pytest.raises(Unsupported, match="fixed to its size"):
        LowerResolution(side=0.75).apply(hasten.capture(model, task.example), task)


def test_refuses_what_is_no_image() -> None:
    model = nn.Linear(4, 2).eval()
    task = Task(model, (torch.randn(4, 4),), [torch.randn(8, 4)])
    with pytest.raises(Unsupported, match="must make an image smaller"):
        LowerResolution().apply(hasten.capture(model, task.example), task)
