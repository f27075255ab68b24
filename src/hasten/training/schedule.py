"""Learning rate and momentum as pure functions of the step, so that resuming needs no scheduler state."""

import math

from torch.optim import Optimizer

from hasten.training.options import Training

_ONE_CYCLE_RISE = 0.3  # share of the steps until the peak
_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_END = 1e-4 / 25
_ONE_CYCLE_MOMENTUM = (0.85, 0.95)


def lr_factor(options: Training, step: int, total: int) -> float:
    """Learning rate of `step` (from 0) among `total` steps, relative to the peak.

    Cosine: Loshchilov and Hutter 2017, "SGDR", eq. 5 without restarts. One-cycle: Smith and Topin 2018,
    "Super-convergence", with cosine ramps.
    """
    if options.schedule == "onecycle":
        rise = max(1.0, _ONE_CYCLE_RISE * total - 1)
        if step <= rise:
            return _cosine(_ONE_CYCLE_START, 1.0, step / rise)
        return _cosine(1.0, _ONE_CYCLE_END, min(1.0, (step - rise) / max(1.0, total - 1 - rise)))
    warmup = round(options.warmup * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if options.schedule == "constant":
        return 1.0
    return _cosine(1.0, 0.0, (step - warmup) / (total - warmup))


def set_rates(optimizer: Optimizer, options: Training, step: int, total: int) -> None:
    """Set learning rate, and for one-cycle momentum, of every parameter group for `step`."""
    factor = lr_factor(options, step, total)
    for group in optimizer.param_groups:
        group["lr"] = options.lr * factor
        if options.schedule == "onecycle":
            low, high = _ONE_CYCLE_MOMENTUM
            momentum = high + (low - high) * factor
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            elif options.momentum > 0:
                group["momentum"] = momentum


def _cosine(start: float, end: float, position: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * position)) / 2
