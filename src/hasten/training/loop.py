"""`train`: the loop. Batches in, trained copy out; what a step does stands in `_Run.step`."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from hasten.errors import InvalidInput, Unsupported
from hasten.graph.duplicate import duplicate, move
from hasten.graph.mode import is_batch_norm, observers_paused, set_training
from hasten.task import Loss, labelled
from hasten.training import checkpoint, randomness
from hasten.training.device import autocast, pick_device, pick_dtype, to_device, to_float32
from hasten.training.options import Training
from hasten.training.progress import Progress
from hasten.training.schedule import set_rates
from hasten.training.watch import current

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: its index, mean training loss, validation score if asked for, and wall time."""

    index: int
    loss: float
    score: float | None
    seconds: float


def train(
    model: M,
    batches: Iterable[Any],
    loss: Loss,
    options: Training | None = None,
    *,
    validate: Callable[[nn.Module], float] | None = None,
    after_step: Callable[[nn.Module, int], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> M:
    """A trained copy of `model`, in eval mode on the model's own device.

    Frozen parameters stay frozen, unless all are. On a CPU the result is a function of the arguments bit for bit
    (with the same number of threads), also when the run was killed and resumed from `options.checkpoint`.

    Args:
        model: Captured graph (fake-quantizers inside are fine) or any module. Left as it is.
        batches: Re-iterable of `(inputs, target)`; the target may be any nesting of tensors.
        loss: `loss(output, target) -> scalar`, the mean over the batch. If it is a module, its parameters are
            trained along with the model's.
        options: How to train.
        validate: `validate(model) -> score`, higher is better, called in eval mode after every epoch.
        after_step: `after_step(model, steps_done)`, called after every optimizer step, e.g. to apply masks again.
        on_epoch: Receives every finished `Epoch`.

    Raises:
        InvalidInput: Nothing to train on, an unusable device, a checkpoint of another run, or `patience` without
            `validate`.
        Unsupported: The loss is no longer finite.
    """
    options = options or Training()
    if options.patience is not None and validate is None:
        raise InvalidInput("`patience` must come with `validate`, but there is none. Pass it, or leave patience out.")
    with randomness.isolated():
        run = _Run(model, loss, options, _batches_per_epoch(batches))
        run.resume()
        run.watch.start()
        with Progress(options.progress, run.total, run.steps) as progress:
            while not run.finished:
                epoch = run.epoch(batches, validate, after_step, progress)
                if on_epoch is not None:
                    on_epoch(epoch)
        return run.result(model)


class _Run:
    """The changing state of one training run. All that decides its future is in `_state`."""

    def __init__(self, model: nn.Module, loss: Loss, options: Training, batches_per_epoch: int) -> None:
        self.options = options
        self.per_epoch = batches_per_epoch
        steps = -(-batches_per_epoch // options.accumulate) * options.epochs
        self.total = min(steps, options.max_steps or steps)
        self.last = min(self.total, options.stop_after or self.total)
        self.watch = current()
        self.device = pick_device(options.device)
        self.dtype = pick_dtype(options.precision, self.device, model)
        self.model = duplicate(model)
        self.loss = duplicate(loss) if isinstance(loss, nn.Module) else loss
        self._prepare(self.model)
        self.run_id = checkpoint.fingerprint(self.model, options, self.total)
        self.optimizer = _optimizer(self._trained(), options)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.average = None if options.ema is None else duplicate(self.model)
        self.steps = self.epochs_done = self.batches_done = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.best_score: float | None = None
        self.best_weights: dict[str, Any] = {}
        self.epochs_since_best = 0
        self.random_state: dict[str, Any] | None = None

    def _prepare(self, model: nn.Module) -> None:
        move(model, self.device)
        if self.options.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if not any(p.requires_grad for p in model.parameters()):
            # A model loaded for inference often arrives frozen as a whole.
            for parameter in model.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
        if isinstance(self.loss, nn.Module):
            self.loss.to(self.device).train()

    def _trained(self) -> list[nn.Parameter]:
        modules = [self.model, *([self.loss] if isinstance(self.loss, nn.Module) else [])]
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    @property
    def finished(self) -> bool:
        patience = self.options.patience
        stopped = patience is not None and self.epochs_since_best >= patience
        done = self.epochs_done >= self.options.epochs or self.steps >= self.last
        return stopped or done or self.watch.stopped_after is not None

    def epoch(
        self,
        batches: Iterable[Any],
        validate: Callable[[nn.Module], float] | None,
        after_step: Callable[[nn.Module, int], None] | None,
        progress: Progress,
    ) -> Epoch:
        """Train the rest of the current epoch, validate, save."""
        started = time.perf_counter()
        set_training(self.model, True, freeze_batch_norm=self.options.freeze_batch_norm)
        self.optimizer.zero_grad(set_to_none=True)
        index = self.epochs_done
        for inputs, target in self._rest_of_epoch(batches):
            self.accumulate(inputs, target)
            if self.batches_done % self.options.accumulate and self.batches_done < self.per_epoch:
                continue
            self.step(after_step)
            progress.advance(self.loss_sum, self.batches_done, index)
            if self.watch.step(self.steps, self.last):
                break
            if self.options.checkpoint_every and self.steps % self.options.checkpoint_every == 0:
                self.save()
        mean_loss = float(self.loss_sum) / max(1, self.batches_done)
        if not torch.isfinite(torch.tensor(mean_loss)):
            raise Unsupported(
                f"Training must keep a finite loss, but in epoch {index} it was {mean_loss}. "
                "Lower `lr` or set `clip_norm`."
            )
        score = self._validate(validate)
        self.epochs_done, self.batches_done, self.random_state = index + 1, 0, None
        self.loss_sum.zero_()
        if self.watch.stopped_after is None:  # an epoch cut short is no place to go on from
            self.save()
        return Epoch(index, mean_loss, score, time.perf_counter() - started)

    def _rest_of_epoch(self, batches: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        randomness.seed_epoch(batches, self.options.seed, self.epochs_done)
        stream = itertools.islice(labelled(batches, "train"), self.per_epoch)
        for _ in range(self.batches_done):
            next(stream, None)
        if self.random_state is not None:
            randomness.restore(self.random_state)
        return stream

    def accumulate(self, inputs: Any, target: Any) -> None:
        """Add the gradient of one batch, weighted so that a step sees the mean over its batches."""
        group_start = self.batches_done - self.batches_done % self.options.accumulate
        group = min(self.options.accumulate, self.per_epoch - group_start)
        self.batches_done += 1
        if len(inputs[0]) == 1 and self.per_epoch > 1 and _normalises_over_batch(self.model):
            return  # one sample has no variance: batch norm would write NaN into its running statistics
        inputs = to_device(inputs, self.device, self.options.channels_last)
        with autocast(self.device, self.dtype):
            output = self.model(*inputs)
        value: Tensor = self.loss(to_float32(output), to_device(target, self.device))
        self.loss_sum += value.detach()
        self.scaler.scale(value / group).backward()  # type: ignore[no-untyped-call]

    def step(self, after_step: Callable[[nn.Module, int], None] | None) -> None:
        """One optimizer step on the accumulated gradient."""
        parameters = self._trained()
        set_rates(self.optimizer, self.options, self.steps, self.total)
        if any(p.grad is not None for p in parameters):
            if self.options.clip_norm is not None:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(parameters, self.options.clip_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        if after_step is not None:
            with torch.no_grad():
                after_step(self.model, self.steps)
        if self.average is not None and self.options.ema is not None:
            _average(self.average, self.model, self.options.ema, self.steps)

    def _current(self) -> nn.Module:
        return self.model if self.average is None else self.average

    def _validate(self, validate: Callable[[nn.Module], float] | None) -> float | None:
        if validate is None:
            return None
        model = self._current()
        set_training(model, False)
        with torch.no_grad(), observers_paused(model):
            score = float(validate(model))
        if self.options.patience is not None:
            self.epochs_since_best += 1
            if self.best_score is None or score > self.best_score:
                self.best_score, self.epochs_since_best = score, 0
                self.best_weights = {k: _copied(v) for k, v in model.state_dict().items()}
        return score

    def result(self, original: M) -> M:
        """The averaged, best or last weights, as `original` was: on its device, with its frozen parameters."""
        model = self._current()
        if self.best_weights:
            model.load_state_dict(self.best_weights)
        set_training(model, False)
        first = next(original.parameters(), None)
        move(model, torch.device("cpu") if first is None else first.device)
        if self.options.channels_last:
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for trained, given in zip(model.parameters(), original.parameters(), strict=True):
            trained.requires_grad_(given.requires_grad)
            trained.grad = None
        return model  # type: ignore[return-value]

    def save(self) -> None:
        """Write the checkpoint, if there is to be one."""
        if self.options.checkpoint is not None:
            checkpoint.save(self.options.checkpoint, self.run_id, self._state())

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one."""
        path = self.options.checkpoint
        state = None if path is None else checkpoint.load(path, self.run_id, self.device)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if isinstance(self.loss, nn.Module):
            self.loss.load_state_dict(state["loss"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.loss_sum = state["loss_sum"]
        self.random_state = state["random"]
        self.best_weights = state["best_weights"]
        for name in ("steps", "epochs_done", "batches_done", "best_score", "epochs_since_best"):
            setattr(self, name, state[name])

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "loss": self.loss.state_dict() if isinstance(self.loss, nn.Module) else {},
            "average": {} if self.average is None else self.average.state_dict(),
            "loss_sum": self.loss_sum,
            "random": None if self.batches_done == 0 else randomness.state(),
            "best_weights": self.best_weights,
            "steps": self.steps,
            "epochs_done": self.epochs_done,
            "batches_done": self.batches_done,
            "best_score": self.best_score,
            "epochs_since_best": self.epochs_since_best,
        }


def _optimizer(parameters: list[nn.Parameter], options: Training) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise InvalidInput("`model` must have parameters to train, but it has none.")
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.lr)
    momentum = options.momentum
    return torch.optim.SGD(groups, lr=options.lr, momentum=momentum, nesterov=momentum > 0)


def _average(averaged: nn.Module, model: nn.Module, decay: float, steps: int) -> None:
    """Move the exponential moving average of weights and buffers on by one step."""
    # The decay rises to its value, so that a short run forgets where it started.
    weight = 1 - min(decay, (1 + steps) / (10 + steps))
    with torch.no_grad():
        for mean, value in zip(averaged.parameters(), model.parameters(), strict=True):
            mean.lerp_(value, weight)
        for (name, kept), current in zip(averaged.named_buffers(), model.buffers(), strict=True):
            if name.endswith(("running_mean", "running_var")):
                kept.lerp_(current, weight)
            else:  # the ranges of observers start at infinity and change their shape
                kept.resize_(current.shape).copy_(current)


def _batches_per_epoch(batches: Iterable[Any]) -> int:
    # A loader without a length is counted, because the schedule needs to know where it ends.
    try:
        count = len(batches)  # type: ignore[arg-type]
    except TypeError:  # also a DataLoader over an iterable dataset, which has `__len__` all the same
        count = sum(1 for _ in batches)
    if count == 0:
        raise InvalidInput("`train` must yield at least one batch, but it is empty.")
    return count


def _normalises_over_batch(model: nn.Module) -> bool:
    if isinstance(model, GraphModule):
        return any(is_batch_norm(node) for node in model.graph.nodes)
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
