"""Learn for every weight whether to round up or down, so that the layer's output stays close.

Source: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", section 3, equations 21 to
24, on the second moments of the inputs (equation 20) instead of the inputs themselves, which is the same loss.
"""

import math

import torch
from torch import Tensor

from hasten.quantization.rounding import better, nearest, round_weights

_STEPS = 600
_WARM_UP = 0.2
_LR = 0.02
_STRETCH_LOW, _STRETCH_HIGH = -0.1, 1.1
# Of the regularizer, against an error that is 1 for rounding to nearest.
_PULL = 0.02
_SHARPEST, _SOFTEST = 2.0, 20.0
# Multiplications of one step; beyond it minutes would pass, and greedy rounding has to do.
_MOST_WORK = 2e9


def learn_rounding(weight: Tensor, scale: Tensor, covariance: Tensor, low: int, high: int) -> Tensor:
    """Integers for `weight`, per output channel never worse than greedy rounding; arguments as of `round_weights`."""
    greedy = round_weights(weight, scale, covariance, low, high)
    if weight.numel() * weight.shape[-1] > _MOST_WORK:
        return greedy
    with torch.enable_grad():
        learned = _learn(weight.detach(), scale, covariance, low, high)
    return better(weight, scale, covariance, learned, greedy)


def _learn(weight: Tensor, scale: Tensor, covariance: Tensor, low: int, high: int) -> Tensor:
    floor = torch.floor(weight / scale)
    share = ((weight / scale) - floor).clamp(1e-3, 1 - 1e-3)
    # Starts where the soft weight is the float weight.
    up = torch.logit((share - _STRETCH_LOW) / (_STRETCH_HIGH - _STRETCH_LOW)).requires_grad_()
    optimizer = torch.optim.Adam([up], lr=_LR)
    start = nearest(weight, scale, covariance, low, high) * scale - weight
    unit = (start @ covariance * start).sum(2, keepdim=True).clamp_min(1e-20)
    for step in range(_STEPS):
        optimizer.zero_grad()
        soft = _rectified(up)
        error = torch.clamp(floor + soft, low, high) * scale - weight
        loss = (error @ covariance * error / unit).sum()
        progress = (step / _STEPS - _WARM_UP) / (1 - _WARM_UP)
        if progress > 0:
            # Beta falls from soft to sharp: first towards the rim, in the end to 0 or 1.
            beta = _SHARPEST + (_SOFTEST - _SHARPEST) * 0.5 * (1 + math.cos(math.pi * progress))
            loss = loss + _PULL * (1 - (2 * soft - 1).abs() ** beta).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return torch.clamp(floor + (up.detach() > 0).float(), low, high)


def _rectified(up: Tensor) -> Tensor:
    return torch.clamp(torch.sigmoid(up) * (_STRETCH_HIGH - _STRETCH_LOW) + _STRETCH_LOW, 0, 1)
