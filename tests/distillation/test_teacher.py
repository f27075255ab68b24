from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from hasten.distillation.teacher import AnswerCache, Pairs, TeacherBatches, is_random, sample_keys, teacher_key
from hasten.task import Task

CPU = torch.device("cpu")
X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return self.linear(x), x.sum(1)


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index] + torch.rand(3), Y[index]


def loader(dataset: Any = None) -> DataLoader[Any]:
    return DataLoader(dataset or TensorDataset(X, Y), batch_size=8, shuffle=True)


def batches(teacher: nn.Module, cache: AnswerCache | None, source: Any = None) -> TeacherBatches:
    return TeacherBatches(Pairs(source or loader(), "labelled"), teacher, CPU, torch.float32, cache)


def test_answers_are_the_teachers_and_the_second_pass_does_not_ask(tmp_path: Path) -> None:
    teacher = Counting()
    cache = AnswerCache(tmp_path / "answers.rows", 20, 1e6)
    source = batches(teacher, cache)
    assert len(source) == 3
    for _ in range(3):
        for (inputs,), (target, answers) in source:
            torch.testing.assert_close(inputs, X[target])
            torch.testing.assert_close(answers, (teacher.linear(inputs).detach(), inputs.sum(1)))
    assert teacher.calls == 3
    assert (tmp_path / "answers.rows").stat().st_size == len("[[4], []]\n") + 20 * (16 + 4 * 5)


def test_another_process_goes_on_with_the_file_and_drops_a_torn_record(tmp_path: Path) -> None:
    teacher, path = Counting(), tmp_path / "answers.rows"
    list(batches(teacher, AnswerCache(path, 20, 1e6)))
    with path.open("ab") as file:
        file.write(b"torn")
    again = Counting()
    again.load_state_dict(teacher.state_dict())
    first = {
        int(y): a[0][i] for _, (target, a) in batches(again, AnswerCache(path, 20, 1e6)) for i, y in enumerate(target)
    }
    assert again.calls == 0
    torch.testing.assert_close(torch.stack([first[i] for i in range(20)]), teacher.linear(X).detach())


def test_augmented_inputs_switch_the_cache_off(tmp_path: Path) -> None:
    assert is_random(loader(Noisy()))
    assert not is_random(loader())
    assert not is_random([(X, Y)])
    teacher = Counting()
    cache = AnswerCache(tmp_path / "answers.rows", 20, 1e6)
    source = batches(teacher, cache, loader(Noisy()))
    for _ in range(3):
        for (inputs,), (_, answers) in source:
            torch.testing.assert_close(answers[0], teacher.linear(inputs).detach())
    assert teacher.calls == 9
    assert not cache.useful
    assert not (tmp_path / "answers.rows").exists()


def test_asking_whether_inputs_are_random_draws_no_random_number() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    is_random(loader(Noisy()))
    assert torch.equal(torch.rand(1), expected)


def test_a_cache_that_would_grow_too_large_is_not_begun(tmp_path: Path) -> None:
    teacher = Counting()
    cache = AnswerCache(tmp_path / "answers.rows", 20, limit_bytes=20 * 36 - 1)
    list(batches(teacher, cache))
    assert not cache.useful
    assert list(tmp_path.iterdir()) == []


def test_keys_tell_samples_dtypes_and_shapes_apart() -> None:
    keys = sample_keys((X, Y))
    assert len(set(keys)) == 20
    assert sample_keys((X[3:4], Y[3:4])) == keys[3:4]
    assert sample_keys((X[:1].double(),)) != sample_keys((X[:1],))
    assert sample_keys((X[:1].T.contiguous().T[:, :2],)) != sample_keys((X[:1],))
    assert sample_keys((torch.zeros(1, 2, 3),)) != sample_keys((torch.zeros(1, 3, 2),))


def test_teacher_key_follows_the_weights() -> None:
    teacher = Counting()
    before = teacher_key(teacher)
    assert teacher_key(teacher) == before
    with torch.no_grad():
        teacher.linear.bias[0] += 1
    assert teacher_key(teacher) != before


@pytest.mark.parametrize("given", ["train", "calibration", "holdout"])
def test_where_the_inputs_come_from(given: str) -> None:
    class Endless:
        def __iter__(self) -> Iterator[Any]:
            return iter([X[:5], X[5:8]]) if given == "calibration" else iter([(X[:5], Y[:5]), (X[5:8], Y[5:8])])

    options: dict[str, Any] = {"holdout": [(X, Y)], given: Endless()}
    pairs = Pairs.of(Task(nn.Linear(3, 2), (X,), **options))
    assert len(pairs) == 2
    assert pairs.samples(5) == 10
    (inputs,), target = next(iter(pairs))
    assert torch.equal(inputs, X[:5])
    assert torch.equal(target, Y[:5]) if given == "train" else target is None
