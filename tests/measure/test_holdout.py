"""The holdout is split once, the parts never meet, and wrong loaders are refused."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hasten.errors import InvalidInput
from hasten.measure.holdout import add_values, store_holdout
from hasten.task import Task


def _task(holdout: Any, example: Any = None) -> Task:
    return Task(nn.Linear(3, 2), example or (torch.zeros(2, 3),), holdout)


def _batches(n: int, size: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x = torch.arange(n * 3, dtype=torch.float32).view(n, 3)
    return list(zip(x.split(size), torch.arange(n).split(size), strict=True))


def test_parts_are_disjoint_cover_all_and_depend_on_the_seed(tmp_path: Path) -> None:
    holdout = store_holdout(_task(_batches(101)), tmp_path / "a", seed=0)
    assert sorted([*holdout.search, *holdout.certify]) == list(range(101))
    assert len(holdout.certify) > 2 * len(holdout.search)
    again = store_holdout(_task(_batches(101)), tmp_path / "b", seed=0)
    other = store_holdout(_task(_batches(101)), tmp_path / "c", seed=1)
    assert np.array_equal(holdout.certify, again.certify)
    assert not np.array_equal(holdout.certify, other.certify)


def test_inputs_and_targets_stay_together(tmp_path: Path) -> None:
    holdout = store_holdout(_task(_batches(30)), tmp_path, seed=0)
    seen = []
    for (x,), target in holdout.batches(holdout.search, 4):
        assert x[:, 0].tolist() == (target * 3).tolist()
        seen += target.tolist()
    assert seen == holdout.search.tolist()


def test_unlabelled_holdouts_have_no_targets(tmp_path: Path) -> None:
    assert store_holdout(_task([torch.zeros(4, 3)] * 3), tmp_path, seed=0).targets is None


def test_a_quarter_steers_and_lengths_are_known(tmp_path: Path) -> None:
    holdout = store_holdout(_task(_batches(40)), tmp_path / "new" / "folder", seed=3)
    assert (len(holdout), len(holdout.search), len(holdout.certify), holdout.seed) == (40, 10, 30, 3)
    assert [len(holdout.batches(holdout.search, size)) for size in (1, 3, 5, 10, 11)] == [10, 4, 2, 1, 1]
    assert [len(x[0]) for x, _ in holdout.batches(holdout.search, 4)] == [4, 4, 2]


def test_two_samples_are_enough_to_split(tmp_path: Path) -> None:
    holdout = store_holdout(_task(_batches(2)), tmp_path, seed=0)
    assert (len(holdout.search), len(holdout.certify)) == (1, 1)


def test_unlabelled_batches_have_no_target_and_numbers_become_tensors(tmp_path: Path) -> None:
    bare = store_holdout(_task([torch.zeros(4, 3)] * 3), tmp_path / "bare", seed=0)
    assert [target for _, target in bare.batches(bare.certify, 4)] == [None] * 3
    listed = store_holdout(
        _task([(torch.zeros(2, 3), np.array([5, 6])), (torch.zeros(1, 3), np.array([7]))]), tmp_path, 0
    )
    assert listed.targets.tolist() == [5, 6, 7]


def test_a_target_that_wants_a_gradient_is_taken_as_a_value(tmp_path: Path) -> None:
    holdout = store_holdout(_task([(torch.zeros(4, 3), torch.ones(4, requires_grad=True))]), tmp_path, seed=0)
    assert not holdout.targets.requires_grad


@pytest.mark.parametrize(
    ("holdout", "message"),
    [
        ([], "at least 2 samples, but yielded 0"),
        ([torch.zeros(1, 3)], "at least 2 samples, but yielded 1"),
        ([torch.zeros(4, 5)], "shaped like `example`"),
        ([torch.zeros(4, 3, dtype=torch.float64)], "shaped like `example`"),
        ([torch.full((4, 3), float("nan"))], "finite inputs, but batch 0, input 0"),
        ([(torch.zeros(4, 3), torch.zeros(4)), torch.zeros(4, 3)], "a target in every batch or in none"),
        ([(torch.zeros(4, 3), ["a", "b", "c", "d"])], "targets as tensors"),
    ],
)
def test_a_wrong_holdout_is_refused(holdout: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=message):
        store_holdout(_task(holdout), tmp_path, seed=0)


def test_any_values_can_be_told_apart() -> None:
    def found(*values: object) -> str:
        digest = hashlib.sha256()
        add_values(digest, values)
        return digest.hexdigest()

    kinds = [
        torch.tensor(1.0),
        torch.ones(1),
        torch.ones(2, 0),
        torch.ones(3, dtype=torch.bfloat16),
        torch.tensor(True),
    ]
    assert len({found(x) for x in [*kinds, "text", 7, None]}) == 8
    assert found(torch.arange(6).reshape(2, 3).T) == found(torch.arange(6).reshape(2, 3).T.contiguous())
