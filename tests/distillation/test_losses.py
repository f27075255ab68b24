"""Every loss against its formula written out in float64 NumPy, and against cases whose answer is known."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from hasten.distillation import losses

Array = NDArray[np.float64]


def pair(seed: int, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    random = np.random.default_rng(seed)
    student, teacher = random.normal(size=(2, rows, columns)) * 3
    labels = random.integers(0, columns, rows)
    return torch.from_numpy(student), torch.from_numpy(teacher), torch.from_numpy(labels)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


cases = given(st.integers(0, 10_000), st.integers(2, 6), st.integers(3, 8), st.floats(0.5, 10))


@settings(deadline=None)
@cases
def test_kl(seed: int, rows: int, columns: int, temperature: float) -> None:
    student, teacher, _ = pair(seed, rows, columns)
    p, q = softmax(teacher.numpy() / temperature), softmax(student.numpy() / temperature)
    expected = temperature**2 * np.mean(np.sum(p * np.log(p / q), axis=1))
    assert float(losses.kl(student, teacher, temperature)) == pytest.approx(expected, rel=1e-9)


@settings(deadline=None)
@cases
def test_dkd(seed: int, rows: int, columns: int, temperature: float) -> None:
    student, teacher, labels = pair(seed, rows, columns)
    p, q = softmax(teacher.numpy() / temperature), softmax(student.numpy() / temperature)
    total = 0.0
    for i, y in enumerate(labels.tolist()):
        b_t, b_s = np.array([p[i, y], 1 - p[i, y]]), np.array([q[i, y], 1 - q[i, y]])
        rest_t, rest_s = np.delete(p[i], y) / (1 - p[i, y]), np.delete(q[i], y) / (1 - q[i, y])
        total += np.sum(b_t * np.log(b_t / b_s)) + 2.5 * np.sum(rest_t * np.log(rest_t / rest_s))
    actual = float(losses.dkd(student, teacher, labels, temperature, 2.5))
    assert actual == pytest.approx(total / rows * temperature**2, rel=1e-6)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 8), st.floats(0.5, 10))
def test_dkd_weighted_by_the_other_classes_is_kl(seed: int, columns: int, temperature: float) -> None:
    """Zhao et al. 2022, eq. 6."""
    student, teacher, labels = pair(seed, 1, columns)
    beta = 1 - float((teacher / temperature).softmax(1)[0, labels[0]])
    actual = float(losses.dkd(student, teacher, labels, temperature, beta))
    assert actual == pytest.approx(float(losses.kl(student, teacher, temperature)), rel=1e-7)


def correlation(a: Array, b: Array) -> float:
    """Pearson's, where a vector's norm about its mean counts as at least 1e-8."""
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / (np.maximum(np.sqrt(a @ a), 1e-8) * np.maximum(np.sqrt(b @ b), 1e-8)))


@settings(deadline=None)
@cases
@example(seed=6967, rows=2, columns=3, temperature=0.5)  # a column of probabilities that hardly vary
def test_dist(seed: int, rows: int, columns: int, temperature: float) -> None:
    student, teacher, _ = pair(seed, rows, columns)
    p, q = softmax(student.numpy() / temperature), softmax(teacher.numpy() / temperature)
    inter = np.mean([1 - correlation(p[i], q[i]) for i in range(rows)])
    intra = np.mean([1 - correlation(p[:, j], q[:, j]) for j in range(columns)])
    actual = float(losses.dist(student, teacher, temperature))
    assert actual == pytest.approx(temperature**2 * (inter + intra), rel=1e-4, abs=1e-4)


@settings(deadline=None)
@cases
def test_mse_and_cosine(seed: int, rows: int, columns: int, temperature: float) -> None:
    student, teacher, _ = pair(seed, rows, columns)
    s, t = student.numpy(), teacher.numpy()
    assert float(losses.mse(student, teacher)) == pytest.approx(np.mean((s - t) ** 2))
    cosines = (s * t).sum(1) / np.sqrt((s**2).sum(1) * (t**2).sum(1))
    assert float(losses.cosine(student, teacher)) == pytest.approx(1 - cosines.mean())
    assert float(losses.relative_mse(teacher.mean().expand_as(teacher), teacher)) == pytest.approx(1)


def test_kl_at_a_high_temperature_matches_centred_logits() -> None:
    """Hinton et al. 2015, section 2.1."""
    student, teacher, _ = pair(0, 4, 7)
    student, teacher = student - student.mean(1, keepdim=True), teacher - teacher.mean(1, keepdim=True)
    assert float(losses.kl(student, teacher, 1e4)) == pytest.approx(float(losses.mse(student, teacher)) / 2, rel=1e-3)


ALL: list[tuple[str, Any]] = [
    ("kl", lambda s, t, y: losses.kl(s, t, 2.0)),
    ("dkd", lambda s, t, y: losses.dkd(s, t, y, 2.0, 2.0)),
    ("dist", lambda s, t, y: losses.dist(s, t, 2.0)),
    ("mse", lambda s, t, y: losses.mse(s, t)),
    ("cosine", lambda s, t, y: losses.cosine(s, t)),
]


@pytest.mark.parametrize("loss", [f for _, f in ALL], ids=[name for name, _ in ALL])
def test_zero_at_the_teacher_positive_elsewhere_and_descends(loss: Any) -> None:
    student, teacher, labels = pair(1, 6, 5)
    assert float(loss(teacher, teacher, labels)) == pytest.approx(0, abs=1e-7)
    student.requires_grad_()
    start = loss(student, teacher, labels)
    assert float(start.detach()) > 0
    optimizer = torch.optim.Adam([student], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss(student, teacher, labels).backward()
        optimizer.step()
    assert float(loss(student, teacher, labels).detach()) < 0.1 * float(start.detach())


@pytest.mark.parametrize("loss", [f for _, f in ALL], ids=[name for name, _ in ALL])
def test_finite_for_extreme_logits_and_a_single_row(loss: Any) -> None:
    student = torch.tensor([[300.0, -300.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-300.0, 300.0, 0.0]])
    value = loss(student, teacher, torch.tensor([1]))
    value.backward()
    assert torch.isfinite(value)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_shift_of_all_logits_changes_no_probability_loss() -> None:
    student, teacher, labels = pair(2, 4, 5)
    for name in ("kl", "dkd", "dist"):
        loss = dict(ALL)[name]
        assert float(loss(student + 7, teacher - 3, labels)) == pytest.approx(float(loss(student, teacher, labels)))


def test_attention_map() -> None:
    feature = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = (feature**2).sum(1).reshape(2, 20)
    torch.testing.assert_close(losses.attention_map(feature), expected / expected.norm(dim=1, keepdim=True))
    torch.testing.assert_close(losses.attention_map(feature * 3), losses.attention_map(feature))
    tokens = torch.randn(2, 5, 8)
    assert losses.attention_map(tokens).shape == (2, 5)
