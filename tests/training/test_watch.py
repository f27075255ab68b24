"""A training watched from outside: step times, a time limit, and the same weights again from where it stopped."""

import torch
from torch import Tensor, nn

from hasten.training import Training, train, watched

BATCHES = [(torch.randn(8, 4, generator=torch.Generator().manual_seed(i)), torch.zeros(8)) for i in range(5)]
OPTIONS = {"epochs": 4, "lr": 0.1, "progress": False, "precision": "fp32"}


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 1)


def _weight(model: nn.Module) -> Tensor:
    return model.get_parameter("weight")


def _loss(output: Tensor, target: Tensor) -> Tensor:
    return (output[:, 0] - target).square().mean()


def test_without_a_limit_every_step_is_timed_and_nothing_changes() -> None:
    with watched() as watch:
        seen = train(_model(), BATCHES, _loss, Training(**OPTIONS))  # type: ignore[arg-type]
    assert len(watch.step_s) == 20
    assert watch.stopped_after is None
    assert watch.typical_step_s > 0
    unseen = train(_model(), BATCHES, _loss, Training(**OPTIONS))  # type: ignore[arg-type]
    assert torch.equal(_weight(seen), _weight(unseen))


def test_a_limit_stops_and_stop_after_gives_the_same_weights() -> None:
    with watched(limit_s=0.0) as watch:
        short = train(_model(), BATCHES, _loss, Training(**OPTIONS))  # type: ignore[arg-type]
    assert watch.stopped_after == 1
    same = train(_model(), BATCHES, _loss, Training(**OPTIONS, stop_after=1))  # type: ignore[arg-type]
    assert torch.equal(_weight(short), _weight(same))
    # Not the same as a run that was planned this short: its learning rates are others.
    planned = train(_model(), BATCHES, _loss, Training(**OPTIONS, stop_after=7))  # type: ignore[arg-type]
    other = train(_model(), BATCHES, _loss, Training(**OPTIONS, max_steps=7))  # type: ignore[arg-type]
    assert not torch.equal(_weight(planned), _weight(other))


def test_a_run_that_is_finished_when_time_ends_was_not_stopped() -> None:
    with watched(limit_s=0.0) as watch:
        train(_model(), BATCHES, _loss, Training(**OPTIONS, max_steps=1))  # type: ignore[arg-type]
    assert watch.stopped_after is None
