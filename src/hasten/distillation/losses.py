"""Losses between a student's and a teacher's outputs. Rows are samples (or tokens, or pixels), columns are classes.

Every function takes float tensors [rows, columns] of one shape and gives a scalar, the mean over the rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_EPSILON = 1e-8


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)).

    Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network", section 2; T^2 keeps the gradient's
    size when T changes. Its limit for large T is half the `mse` of the centred logits (section 2.1).
    """
    student, teacher = (student / temperature).log_softmax(1), (teacher / temperature).log_softmax(1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference. Ba and Caruana 2014, "Do deep nets really need to be deep?", eq. 1."""
    return F.mse_loss(student, teacher)


def relative_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """`mse` in units of the teacher's variance: 1 is as bad as answering the mean."""
    return F.mse_loss(student, teacher) / teacher.var(correction=0).clamp_min(_EPSILON)


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine similarity of the rows."""
    return 1 - F.cosine_similarity(student, teacher, dim=1, eps=_EPSILON).mean()


def dkd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, beta: float) -> Tensor:
    """Target-class KL plus `beta` times the KL among the other classes, times T^2.

    Zhao et al. 2022, "Decoupled knowledge distillation", eq. 7 (with alpha 1). `beta` equal to the teacher's
    probability of the other classes, per row, would give `kl`.

    Args:
        student: Logits [rows, classes].
        teacher: Logits [rows, classes].
        labels: True classes, int64 [rows].
        temperature: T.
        beta: Weight of the other classes.
    """
    is_label = F.one_hot(labels, student.shape[1]).bool()
    log_s, log_t = (student / temperature).log_softmax(1), (teacher / temperature).log_softmax(1)
    target_class = F.kl_div(_binary(log_s, is_label), _binary(log_t, is_label), reduction="batchmean", log_target=True)
    others_s = (student / temperature)[~is_label].view(len(student), -1).log_softmax(1)
    others_t = (teacher / temperature)[~is_label].view(len(teacher), -1).log_softmax(1)
    other_classes = F.kl_div(others_s, others_t, reduction="batchmean", log_target=True)
    return (target_class + beta * other_classes) * temperature**2


def dist(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """1 - Pearson correlation of the probabilities, within rows plus within columns, times T^2.

    Huang et al. 2022, "Knowledge distillation from a stronger teacher", eq. 8 to 10 (inter- and intra-class). A single
    row has no correlation within columns, so there only the first term is left. What varies by less than 1e-8 (norm
    about the mean) counts as uncorrelated, so that its gradient stays finite.
    """
    p, q = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    loss = 1 - _pearson(p, q).mean()
    if len(p) > 1:
        loss = loss + 1 - _pearson(p.mT, q.mT).mean()
    return loss * temperature**2


def attention_map(feature: Tensor) -> Tensor:
    """Where a feature map is active: the sum of squares over channels, unit norm, [N, positions].

    Zagoruyko and Komodakis 2017, "Paying more attention to attention", section 3.1 (F_sum^2).

    Args:
        feature: Image features [N, C, H, W], tokens [N, T, D], or [N, D], which counts as D positions.
    """
    if feature.ndim == 2:
        energy = feature.square()
    elif feature.ndim == 3:
        energy = feature.square().sum(2)
    else:
        energy = feature.square().sum(1).flatten(1)
    return F.normalize(energy, dim=1, eps=_EPSILON)


def _binary(log_p: Tensor, is_label: Tensor) -> Tensor:
    """Log-probabilities of {label, not label}, [rows, 2]."""
    others = log_p.masked_fill(is_label, -torch.inf).logsumexp(1)
    return torch.stack([log_p[is_label], others], dim=1)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    centred = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return F.cosine_similarity(*centred, dim=1, eps=_EPSILON)
