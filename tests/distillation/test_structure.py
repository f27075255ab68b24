import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.distillation.structure import class_axis, default_loss, rows
from hasten.task import Task, cosine_similarity


def task(**options: object) -> Task:
    return Task(nn.Linear(2, 2), (torch.zeros(1, 2),), [], **options)  # type: ignore[arg-type]


CLASSES = torch.zeros(4).long()
CASES: dict[str, tuple[tuple[int, ...], Tensor | None, str]] = {
    "classification": ((4, 10), CLASSES, "kl"),
    "classification without labels": ((4, 10), None, "kl"),
    "soft labels": ((4, 2), torch.full((4, 2), 0.5), "kl"),
    "tokens": ((4, 7, 5), torch.zeros(4, 7).long(), "kl"),
    "pixels": ((4, 5, 6, 7), torch.zeros(4, 6, 7).long(), "kl"),
    "regression": ((4, 3), torch.randn(4, 3), "mse"),
    "regression of one number": ((4, 1), None, "mse"),
    "images without labels": ((4, 3, 8, 8), None, "mse"),
}


@pytest.mark.parametrize("name", list(CASES))
def test_default_loss_by_structure(name: str) -> None:
    shape, target, expected = CASES[name]
    output = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    assert default_loss(output, target, task()) == expected
    assert default_loss((output, output), target, task()) == expected


def test_default_loss_of_embeddings() -> None:
    output = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert default_loss(output, None, task(score=cosine_similarity)) == "cosine"
    assert default_loss(F.normalize(output), None, task()) == "cosine"
    assert default_loss(output, None, task(score=lambda output, target: output[:, 0])) == "mse"


@pytest.mark.parametrize(
    ("shape", "labels", "axis"),
    [
        ((4, 10), CLASSES, 1),
        ((4, 7, 5), torch.zeros(4, 7), 2),
        ((4, 5, 7), torch.zeros(4, 7), 1),
        ((4, 7, 7), torch.zeros(4, 7), 2),
        ((4, 5, 6, 7), torch.zeros(4, 6, 7), 1),
        ((4, 7, 5), None, 2),
    ],
)
def test_class_axis(shape: tuple[int, ...], labels: Tensor | None, axis: int) -> None:
    output = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    assert class_axis(output.shape, labels) == axis
    flat = rows(output, axis)
    assert flat.shape == (output.numel() // shape[axis], shape[axis])
    assert torch.equal(flat[0], output[0].movedim(axis - 1, -1).reshape(-1, shape[axis])[0])
