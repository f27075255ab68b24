"""An independent copy of a graph or module, and the same on another device."""

import copy
import warnings
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.fx import GraphModule

M = TypeVar("M", bound=nn.Module)


def duplicate(module: M, *, share_tensors: bool = False) -> M:
    """A deep copy; what every technique starts from.

    Args:
        module: What to copy.
        share_tensors: Share parameters and buffers with `module`, for copies that replace most of them: at a billion
            parameters every copy is 4 GB. Whoever shares must not write into a tensor, and `separate` the result.
    """
    tensors = (*module.parameters(), *module.buffers()) if share_tensors else ()
    with warnings.catch_warnings():
        # torch 2.13 copies the pytree specs of a graph through a constructor that it deprecates itself.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        return copy.deepcopy(module, {id(x): x for x in tensors})


def separate(module: nn.Module, original: nn.Module) -> None:
    """Give `module` its own copy, in place, of every parameter and buffer that it still shares with `original`."""
    shared = {id(x) for x in (*original.parameters(), *original.buffers())}
    copies: dict[int, torch.Tensor] = {}  # what is tied stays tied
    for part in module.modules():
        for held in cast(tuple[dict[str, Any], ...], (part._parameters, part._buffers)):
            for name, x in held.items():
                if x is not None and id(x) in shared:
                    held[name] = copies.setdefault(id(x), copy.deepcopy(x))


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
