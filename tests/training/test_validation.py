import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.errors import InvalidInput
from hasten.graph.capture import capture
from hasten.task import Task, cosine_similarity
from hasten.training import mean_score, task_loss
from hasten.training.validation import cross_entropy


class Constant(nn.Module):
    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] * 0 + self.output


@pytest.mark.parametrize(
    ("output", "target"),
    [((4, 3), (4,)), ((4, 5, 3), (4, 5)), ((4, 3, 5, 6), (4, 5, 6)), ((3, 3, 3), (3, 3)), ((5, 5, 5, 5), (5, 5, 5))],
    ids=["classes", "tokens", "pixels", "tokens-ambiguous", "pixels-ambiguous"],
)
def test_cross_entropy_by_shape(output: tuple[int, ...], target: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*output, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, target, generator=generator)
    axis = 1 if len(output) == 4 else -1
    log_p = logits - logits.exp().sum(axis, keepdim=True).log()
    expected = -log_p.gather(axis, labels.unsqueeze(axis)).mean()
    torch.testing.assert_close(cross_entropy(logits, labels), expected)
    soft = logits.softmax(axis).roll(1, 0)
    torch.testing.assert_close(cross_entropy((logits,), soft), -(soft * log_p).sum(axis).mean())


def test_cross_entropy_refuses_what_it_cannot_read() -> None:
    with pytest.raises(InvalidInput, match="one label per sample, token or pixel"):
        cross_entropy(torch.zeros(4, 3), torch.zeros(4, 2).long())
    with pytest.raises(InvalidInput, match="Pass `loss` to the Task"):
        cross_entropy(torch.zeros(4), torch.zeros(4))


def test_mean_score_is_over_samples_not_batches() -> None:
    x = torch.ones(3, 2)
    model = Constant(torch.tensor([0.0, 1.0]))
    holdout = [(x, torch.tensor([1, 1, 1])), (x[:1], torch.tensor([0]))]
    task = Task(model, (x,), holdout)
    assert mean_score(task)(capture(model, (x,))) == 0.75
    assert task_loss(task) is cross_entropy
    assert task_loss(Task(model, (x,), holdout, loss=F.l1_loss)) is F.l1_loss


def test_mean_score_without_labels_is_agreement_with_the_original() -> None:
    x = torch.ones(3, 2)
    model = Constant(torch.tensor([0.0, 1.0]))
    task = Task(model, (x,), [x, (x, None)])
    assert mean_score(task)(capture(model, (x,))) == 1.0
    assert mean_score(task)(capture(Constant(torch.tensor([1.0, 0.0])), (x,))) == 0.0
    task = Task(model, (x,), [x], score=cosine_similarity)
    turned = Constant(torch.tensor([1.0, 1.0]))
    assert mean_score(task)(capture(turned, (x,))) == pytest.approx(0.5**0.5)


def test_mean_score_refuses_an_empty_holdout() -> None:
    model = Constant(torch.zeros(2))
    with pytest.raises(InvalidInput, match="`holdout` must hold at least one sample"):
        mean_score(Task(model, (torch.ones(1, 2),), []))(model)


def test_a_metric_sees_the_whole_holdout_at_once() -> None:
    model = Constant(torch.tensor([1.0, 2.0]))
    batches = [(torch.randn(3, 2), torch.tensor([0, 1, 1])), (torch.randn(1, 2), torch.tensor([0]))]
    seen: list[tuple[int, ...]] = []

    def metric(output: torch.Tensor, target: torch.Tensor) -> float:
        seen.append(tuple(output.shape))
        return float((output.argmax(1) == target).double().mean()) / 2

    task = Task(model, (batches[0][0],), batches, metric=metric)
    assert mean_score(task)(capture(model, task.example)) == 0.25
    assert seen == [(4, 2)]
