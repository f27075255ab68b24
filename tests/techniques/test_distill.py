from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.data import DataLoader, TensorDataset

import hasten
from hasten.errors import InvalidInput, Unsupported
from hasten.recipe import Recipe, make_target
from hasten.task import Task, cosine_similarity
from hasten.techniques.distill import Distill
from hasten.training import Training, mean_score, train

BASE = Distill(epochs=8, lr=0.05, precision="fp32")


def mlp(width: int, depth: int = 1) -> nn.Module:
    torch.manual_seed(0)
    layers = [layer for _ in range(depth - 1) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), *layers, nn.Linear(width, 10))


@pytest.fixture(scope="module")
def digits() -> tuple[DataLoader[Any], list[Any]]:
    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    return DataLoader(TensorDataset(x[:1200], y[:1200]), 64, shuffle=True), [(x[1200:], y[1200:])]


@pytest.fixture(scope="module")
def task(digits: tuple[DataLoader[Any], list[Any]]) -> Task:
    graph = hasten.capture(mlp(128, 2), (digits[1][0][0][:4],))
    teacher = train(graph, digits[0], F.cross_entropy, Training(epochs=15, lr=0.2, precision="fp32"))
    return Task(teacher, (digits[1][0][0][:4],), digits[1], train=digits[0])


@pytest.fixture(scope="module")
def student(task: Task) -> GraphModule:
    graph = hasten.capture(mlp(16), task.example)
    assert isinstance(graph, GraphModule)
    return graph


def agreement(graph: GraphModule, task: Task) -> float:
    return mean_score(replace(task, holdout=[inputs for inputs, _ in task.holdout]))(graph)


@pytest.mark.parametrize(
    "technique",
    [
        BASE,
        replace(BASE, loss="mse", lr=0.02),
        replace(BASE, loss="dkd", alpha=0.5),
        replace(BASE, loss="dist", alpha=0.5, temperature=1.0, lr=0.2),
        replace(BASE, features="auto"),
        replace(BASE, features=(("relu", "relu_1"),), optimizer="adamw", lr=0.02),
    ],
    ids=["kl", "mse", "dkd", "dist", "hint", "adamw"],
)
def test_student_learns_the_teacher(task: Task, student: GraphModule, technique: Distill) -> None:
    before = {name: value.clone() for name, value in student.state_dict().items()}
    distilled = technique.apply(student, task)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert distilled.code == student.code
    assert agreement(distilled, task) > 0.8 > agreement(student, task) + 0.3
    assert mean_score(task)(distilled) > 0.8


@pytest.mark.parametrize("field", ["train", "calibration", "holdout"])
def test_unlabelled_inputs_are_enough(task: Task, student: GraphModule, field: str) -> None:
    assert task.train is not None
    inputs = [x for x, _ in task.train]
    sources: dict[str, Any] = {"train": None, "holdout": inputs, field: inputs}
    bare = replace(task, **sources)
    assert agreement(BASE.apply(student, bare), task) > 0.8


def test_the_result_is_a_function_of_the_arguments(task: Task, student: GraphModule) -> None:
    technique = replace(BASE, epochs=2, features="auto")
    first, second = (technique.apply(student, task).state_dict() for _ in range(2))
    other = replace(technique, seed=1).apply(student, task).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_cache_does_not_change_the_result(task: Task, student: GraphModule) -> None:
    technique = replace(BASE, epochs=3)
    with_cache = technique.apply(student, task).state_dict()
    without = replace(technique, cache_gb=0.0).apply(student, task).state_dict()
    torch.testing.assert_close(with_cache, without, rtol=1e-4, atol=1e-5)


class Interrupted(BaseException):
    pass


class Breaking:
    """A loader that breaks down once, in the middle of an epoch."""

    def __init__(self, loader: DataLoader[Any], after: int) -> None:
        self.loader, self.left = loader, after
        self.sampler = loader.sampler

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            self.left -= 1
            if self.left == 0:
                raise Interrupted
            yield batch


def test_killed_and_resumed_equals_uninterrupted(task: Task, student: GraphModule, tmp_path: Path) -> None:
    technique = replace(BASE, epochs=3, features="auto", folder=str(tmp_path / "a"))
    expected = technique.apply(student, task).state_dict()
    assert isinstance(task.train, DataLoader)
    broken = replace(task, train=Breaking(task.train, after=45))
    technique = replace(technique, folder=str(tmp_path / "b"))
    with pytest.raises(Interrupted):
        technique.apply(student, broken)
    assert {path.suffix for path in (tmp_path / "b").iterdir()} == {".pt", ".rows"}
    resumed = technique.apply(student, broken).state_dict()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_early_stop_keeps_the_best_epoch(task: Task, student: GraphModule) -> None:
    score = mean_score(task)
    scores = [score(replace(BASE, max_steps=19 * n, schedule="constant").apply(student, task)) for n in (1, 2, 3)]
    stopped = replace(BASE, epochs=3, patience=3, schedule="constant", features="auto", feature_weight=0.0)
    assert score(stopped.apply(student, task)) == pytest.approx(max(scores), abs=0.01)


def test_embeddings_are_distilled_by_cosine() -> None:
    class Embedder(nn.Module):
        def __init__(self, width: int, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(12, width), nn.Tanh(), nn.Linear(width, 6))

        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(self.layers(x), dim=1)

    x = torch.randn(256, 12, generator=torch.Generator().manual_seed(0))
    batches = [x[i : i + 32] for i in range(0, 192, 32)]
    task = Task(Embedder(32, 0), (x[:4],), [x[192:]], train=batches, score=cosine_similarity)
    student = hasten.capture(Embedder(16, 1), (x[:4],))
    distilled = replace(BASE, epochs=40, lr=0.2).apply(student, task)
    assert mean_score(task)(distilled) > 0.9 > mean_score(task)(student) + 0.3


def test_several_outputs(digits: tuple[DataLoader[Any], list[Any]]) -> None:
    class TwoHeads(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            torch.manual_seed(width)
            self.body, self.a, self.b = nn.Linear(64, width), nn.Linear(width, 10), nn.Linear(width, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            hidden = self.body(x).relu()
            return self.a(hidden), self.b(hidden)

    x = digits[1][0][0]
    task = Task(TwoHeads(64), (x[:4],), digits[1], train=[x[:64] for x, _ in digits[0]])
    student = hasten.capture(TwoHeads(16), (x[:4],))
    technique = replace(BASE, features="auto", patience=8, temperature=1.0, optimizer="adamw", lr=0.01)
    distilled = technique.apply(student, task)
    with torch.no_grad():
        output, reference, start = distilled(x), task.model(x), student(x)
    assert isinstance(output, tuple)
    assert len(output) == 2
    for i in range(2):
        assert float(F.mse_loss(output[i], reference[i])) < 0.7 * float(F.mse_loss(start[i], reference[i]))


def test_refusals(task: Task, student: GraphModule) -> None:
    with pytest.raises(Unsupported, match="outputs shaped like the original's"):
        BASE.apply(hasten.capture(nn.Linear(64, 9), task.example), task)
    with pytest.raises(InvalidInput, match="A node must be one of"):
        replace(BASE, features=(("relu", "no_such_node"),)).apply(student, task)
    with pytest.raises(InvalidInput, match="`alpha` must be in"):
        Distill(alpha=1.5)
    with pytest.raises(InvalidInput, match="`features` must be"):
        Distill(features="some")  # type: ignore[arg-type]


def test_recipe_round_trip() -> None:
    recipe = Recipe((Distill(features=(("relu", "relu_1"),), alpha=0.5, patience=2),), make_target("null"))
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert hasten.Distill is Distill
