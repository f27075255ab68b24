import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.distillation import losses
from hasten.distillation.features import FeatureDistance
from hasten.distillation.objective import Objective
from hasten.distillation.structure import LossName

GENERATOR = torch.Generator().manual_seed(0)
STUDENT, TEACHER = torch.randn(2, 6, 4, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.randint(0, 4, (6,), generator=GENERATOR)


def objective(name: LossName = "kl", alpha: float = 0.7, outputs: int = 1, **options: object) -> Objective:
    return Objective(
        name,
        F.cross_entropy,
        (outputs, outputs),
        temperature=3.0,
        alpha=alpha,
        beta=2.0,
        **options,  # type: ignore[arg-type]
    )


EXPECTED: dict[LossName, Tensor] = {
    "kl": losses.kl(STUDENT, TEACHER, 3.0),
    "mse": losses.mse(STUDENT, TEACHER),
    "dkd": losses.dkd(STUDENT, TEACHER, LABELS, 3.0, 2.0),
    "dist": losses.dist(STUDENT, TEACHER, 3.0),
    "cosine": losses.cosine(STUDENT, TEACHER),
}


@pytest.mark.parametrize("name", list(EXPECTED))
def test_mixes_with_the_task_loss_and_stands_alone_without_labels(name: LossName) -> None:
    mixed = 0.7 * EXPECTED[name] + 0.3 * F.cross_entropy(STUDENT, LABELS)
    torch.testing.assert_close(objective(name)(STUDENT, (LABELS, (TEACHER,))), mixed)
    if name != "dkd":
        torch.testing.assert_close(objective(name)(STUDENT, (None, (TEACHER,))), EXPECTED[name])


def test_alpha_zero_is_the_task_loss_alone() -> None:
    torch.testing.assert_close(objective(alpha=0.0)(STUDENT, (LABELS, (TEACHER,))), F.cross_entropy(STUDENT, LABELS))


def test_dkd_without_labels_takes_the_teachers_choice() -> None:
    expected = losses.dkd(STUDENT, TEACHER, TEACHER.argmax(1), 3.0, 2.0)
    torch.testing.assert_close(objective("dkd")(STUDENT, (None, (TEACHER,))), expected)


def test_dense_and_token_outputs_are_rows() -> None:
    dense = STUDENT.reshape(2, 3, 4).movedim(2, 1), TEACHER.reshape(2, 3, 4).movedim(2, 1)
    dense_labels = LABELS.reshape(2, 3)
    loss = objective(alpha=1.0)
    torch.testing.assert_close(loss(dense[0], (dense_labels, (dense[1],))), EXPECTED["kl"])
    tokens = STUDENT.reshape(2, 3, 4), TEACHER.reshape(2, 3, 4)
    torch.testing.assert_close(loss(tokens[0], (dense_labels, (tokens[1],))), EXPECTED["kl"])


def test_ignored_tokens_do_not_count() -> None:
    labels = LABELS.clone()
    labels[4:] = -100
    actual = objective(alpha=1.0)(STUDENT.reshape(2, 3, 4), (labels.reshape(2, 3), (TEACHER.reshape(2, 3, 4),)))
    torch.testing.assert_close(actual, losses.kl(STUDENT[:4], TEACHER[:4], 3.0))


def test_further_outputs_and_features_add_up() -> None:
    features = FeatureDistance([(STUDENT.shape, TEACHER.shape)], "hint")
    loss = objective("mse", alpha=1.0, outputs=2, features=features, feature_weight=0.5)
    output = (STUDENT, STUDENT * 2, STUDENT + 1)
    answers = (TEACHER, TEACHER * 2, TEACHER + 1)
    relative = losses.relative_mse(STUDENT, TEACHER)
    torch.testing.assert_close(loss(output, (None, answers)), EXPECTED["mse"] + relative + 0.5 * relative)
