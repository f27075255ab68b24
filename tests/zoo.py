"""Every architecture that pruning is proved on, by name. All are built with random weights; nothing is downloaded."""

from collections.abc import Callable

import torch
import zoo_handwritten
import zoo_transformers
from torch import Tensor, nn

ZOO = zoo_handwritten.ZOO | zoo_transformers.ZOO


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model in float64 eval mode, with norms and statistics that are not the initial 0 and 1, and an example."""
    torch.manual_seed(0)
    make: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]] = ZOO[name]
    model, example = make()
    model = model.double().eval()
    with torch.no_grad():
        for module in model.modules():
            for key, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if value.is_floating_point() and value.ndim == 1 and key in ("weight", "bias", "running_mean"):
                    value.add_(torch.randn_like(value), alpha=0.1)
                elif key == "running_var":
                    value.mul_(torch.rand_like(value) + 0.5)
    return model, tuple(x.double() if x.is_floating_point() else x for x in example)
