"""Bad input is refused at the door, with the rule, the value and the remedy."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.errors import InvalidInput
from hasten.task import Budget, Task, calibration_inputs, cosine_similarity, default_score, labelled, unlabelled

MODEL = nn.Linear(3, 2)
X = torch.randn(4, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "net"}, "`model` must be a torch.nn.Module, but got 'net'"),
        ({"example": [X]}, "`example` must be a tuple of tensors"),
        ({"example": (X, torch.randn(2, 3))}, r"same batch size.*\[\(4, 3\), \(2, 3\)\]"),
        ({"example": (torch.tensor(1.0),)}, "batch size of at least 1"),
        ({"holdout": None}, "`holdout` must be an iterable"),
        ({"holdout": iter([X])}, "more than once, but got a one-shot"),
        ({"train": 3}, "`train` must be an iterable"),
        ({"score": 1}, "`score` must be callable"),
    ],
)
def test_a_task_that_breaks_a_rule_is_refused(fields: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"model": MODEL, "example": (X,), "holdout": [(X, None)]}
    with pytest.raises(InvalidInput, match=message):
        Task(**(good | fields))


def test_a_single_tensor_is_an_example() -> None:
    assert torch.equal(Task(MODEL, X, [(X, None)]).example[0], X)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_drop": 0.0}, "`max_drop` must be above 0, but got 0.0"),
        ({"max_drop": float("nan")}, "`max_drop` must be above 0"),
        ({"confidence": 1.0}, r"`confidence` must be in \[0.5, 1\), but got 1.0"),
        ({"minutes": -1}, "`minutes` must be above 0"),
        ({"finalists": 0}, "`finalists` must be at least 1"),
    ],
)
def test_a_budget_that_breaks_a_rule_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Budget(**fields)


def test_labelled_accepts_pairs_and_bare_inputs() -> None:
    y = torch.tensor([0, 1, 0, 1])
    (inputs, target), (bare, none) = labelled([((X, X), y), X])
    assert len(inputs) == 2
    assert target is y
    assert torch.equal(bare[0], X)
    assert none is None


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X, X, X), r"must yield \(inputs, target\) pairs, but batch 0"),
        ("text", r"must yield \(inputs, target\) pairs"),
        ((X, torch.zeros(3)), r"4 inputs and a target of shape \(3,\)"),
        (("a", torch.zeros(3)), "a tensor or a tuple of tensors"),
    ],
)
def test_a_loader_that_yields_the_wrong_thing_is_refused(batch: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        list(labelled([batch]))


def test_calibration_falls_back_to_train_then_holdout() -> None:
    one, two, three = ([(torch.full((1, 3), float(i)), None)] for i in range(3))
    task = Task(MODEL, (X,), three)
    assert next(calibration_inputs(task))[0][0, 0] == 2
    task = Task(MODEL, (X,), three, train=two)
    assert next(calibration_inputs(task))[0][0, 0] == 1
    task = Task(MODEL, (X,), three, train=two, calibration=[one[0][0]])
    assert next(calibration_inputs(task))[0][0, 0] == 0
    assert len(list(unlabelled([X, (X, X)]))) == 2


def test_default_score_is_top_1_or_agreement_with_reference_outputs() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    assert default_score(logits, torch.tensor([1, 1])).tolist() == [1.0, 0.0]
    assert default_score((logits,), -logits).tolist() == [0.0, 0.0]
    per_token: Tensor = torch.stack([logits, logits])
    assert default_score(per_token, torch.tensor([[1, 0], [0, 0]])).tolist() == [1.0, 0.5]


def test_a_label_that_no_output_can_be_is_refused() -> None:
    with pytest.raises(InvalidInput, match="from 0 to 1, one for each output of the model, but got 2"):
        default_score(torch.zeros(3, 2), torch.tensor([1, 2, 1]))


def test_cosine_similarity_is_1_for_scaled_vectors() -> None:
    torch.testing.assert_close(cosine_similarity(X, 3 * X), torch.ones(4))


@pytest.mark.parametrize("shape", [(3, 1), (3, 3), (1,)])
def test_labels_of_another_shape_are_refused_not_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"must have the shape \(3,\), one for each row"):
        default_score(torch.zeros(3, 2), torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(InvalidInput, match="but got -1"):
        default_score(torch.zeros(3, 2), torch.tensor([0, -1, 1]))
