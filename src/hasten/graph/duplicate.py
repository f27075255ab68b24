"""An independent copy of a graph or module, and the same on another device."""

import copy
import warnings
from typing import Any, TypeVar

import torch
from torch import nn
from torch.fx import GraphModule

M = TypeVar("M", bound=nn.Module)


def duplicate(module: M) -> M:
    """A deep copy that shares no tensor with `module`; what every technique starts from."""
    with warnings.catch_warnings():
        # torch 2.13 copies the pytree specs of a graph through a constructor that it deprecates itself.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        return copy.deepcopy(module)


def move(module: nn.Module, device: torch.device) -> None:
    """Move `module` to `device` in place, including the devices that a captured graph carries as constants.

    `torch.export` writes `device=` into factory calls (`arange`, `full`) and into metadata assertions; the latter are
    dropped, because they also pin the dtype and would fail under autocast.
    """
    module.to(device)
    for graph in (m for m in module.modules() if isinstance(m, GraphModule)):
        for node in list(graph.graph.nodes):
            if node.target is torch.ops.aten._assert_tensor_metadata.default:
                graph.graph.erase_node(node)
                continue
            node.args = _with_device(node.args, device)
            node.kwargs = _with_device(node.kwargs, device)
        graph.recompile()


def _with_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.device):
        return device
    if isinstance(value, dict):
        return {key: _with_device(item, device) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_with_device(item, device) for item in value)
    return value
