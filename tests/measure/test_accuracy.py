"""Scores of outputs that lie in files."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hasten.errors import InvalidInput, Unsupported
from hasten.measure.accuracy import outputs_of, reference_targets, scores
from hasten.measure.arrays import ArrayFile, ArrayWriter
from hasten.task import Task


def stored(array: np.ndarray, folder: Path, name: str = "x") -> ArrayFile:
    writer = ArrayWriter(folder / name, array)
    return writer.close()


def task(**options: Any) -> Task:
    return Task(model=torch.nn.Identity(), example=(torch.zeros(1, 3),), holdout=[], **options)


OUTPUTS = np.random.default_rng(0).normal(size=(600, 3)).astype(np.float32)
TARGETS = torch.arange(600) % 3


def test_every_row_is_judged_once_and_in_order(tmp_path: Path) -> None:
    file = stored(OUTPUTS, tmp_path)
    right = OUTPUTS.argmax(1) == TARGETS.numpy()
    found = scores(task(), [file], TARGETS)
    np.testing.assert_array_equal(found, right.astype(np.float64))
    assert found.dtype == np.float64
    rows = np.array([599, 3, 300, 4])
    np.testing.assert_array_equal(scores(task(), [file], TARGETS[rows], rows), right[rows])


def test_several_outputs_reach_the_score_as_a_tuple(tmp_path: Path) -> None:
    files = [stored(OUTPUTS, tmp_path, "a"), stored(OUTPUTS * 2, tmp_path, "b")]

    def score(output: Any, target: Any) -> Tensor:
        assert isinstance(output, tuple)
        return (output[1] - output[0])[:, 0] + target["t"]

    found = scores(task(score=score), files, {"t": TARGETS})
    np.testing.assert_allclose(found, OUTPUTS[:, 0] + TARGETS.numpy(), rtol=1e-6)


def test_a_metric_judges_all_rows_together(tmp_path: Path) -> None:
    seen: list[int] = []

    def metric(output: Any, target: Tensor) -> float:
        seen.append(len(output))
        return float((output.argmax(1) == target).double().mean())

    found = scores(task(metric=metric), [stored(OUTPUTS, tmp_path)], TARGETS)
    assert seen[0] == 600
    assert found.mean() == pytest.approx((OUTPUTS.argmax(1) == TARGETS.numpy()).mean())


def test_outputs_of_the_original_stand_for_labels(tmp_path: Path) -> None:
    first = reference_targets([stored(OUTPUTS, tmp_path)])
    np.testing.assert_array_equal(first.numpy(), OUTPUTS)
    pair = reference_targets([stored(OUTPUTS, tmp_path, "a"), stored(OUTPUTS + 1, tmp_path, "b")])
    np.testing.assert_array_equal(pair[1].numpy(), OUTPUTS + 1)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda output, target: 1 / 0, "must accept"),
        (lambda output, target: output.mean(), "one number per sample"),
        (lambda output, target: output[:-1, 0], "one number per sample"),
        (lambda output, target: 0.5, "a float"),
        (lambda output, target: output[:, 0] / 0, "must return finite numbers"),
    ],
)
def test_a_score_that_breaks_its_rule_is_named(score: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=message):
        scores(task(score=score), [stored(OUTPUTS, tmp_path)], TARGETS)


@pytest.mark.parametrize("row", [0, 299, 599])
def test_outputs_that_are_not_finite_are_refused(row: int, tmp_path: Path) -> None:
    bad = OUTPUTS.copy()
    bad[row, 1] = np.nan
    good = stored(OUTPUTS, tmp_path, "good"), stored(TARGETS.numpy(), tmp_path, "integers")
    holdout: Any = SimpleNamespace(inputs=[])

    def worker(*files: ArrayFile) -> Any:
        return SimpleNamespace(infer=lambda *_: list(files))

    assert outputs_of(worker(*good), holdout, np.arange(600), tmp_path, 4) == list(good)
    with pytest.raises(Unsupported, match="output 2 has 1 values"):
        outputs_of(worker(*good, stored(bad, tmp_path, "bad")), holdout, np.arange(600), tmp_path, 4)
