"""Every architecture that pruning is proved on, by name. All are built with random weights; nothing is downloaded."""

from collections.abc import Callable

import torch
import zoo_convolutional
import zoo_sequential
import zoo_transformers
from torch import Tensor, nn

HANDWRITTEN = zoo_convolutional.ZOO | zoo_sequential.ZOO
ZOO = HANDWRITTEN | zoo_transformers.ZOO


def build(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model in eval mode with random weights, norms and statistics, and an example."""
    torch.manual_seed(0)
    make: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]] = ZOO[name]
    model, example = make()
    model = model.to(dtype).eval()
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            _randomize(name, value)
    return model, tuple(x.to(dtype) if x.is_floating_point() else x for x in example)


def _randomize(name: str, value: Tensor) -> None:
    """Weights that carry the signal through, norms that are not the identity, so that a wrong cut shows."""
    if not value.is_floating_point() or "inv_freq" in name:
        return
    if name.endswith("running_var"):
        value.copy_(torch.rand_like(value) + 0.5)
    elif value.ndim == 1:
        value.add_(torch.randn_like(value), alpha=0.1)
    elif value.ndim > 1 and value.numel() > 1:
        value.copy_(torch.randn_like(value) * (2.0 / value[0].numel()) ** 0.5)
