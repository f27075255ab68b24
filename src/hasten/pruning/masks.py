"""Which weights are zero and stay zero: by magnitude over the network or a layer, or N of every M."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from hasten.graph.channels import attribute

Masks = dict[str, Tensor]
"""By parameter: bool of its shape, True where the weight stays."""

_CONTRACTIONS = ("linear", "conv", "matmul", "mm", "addmm", "bmm")


def weight_names(graph: GraphModule) -> list[str]:
    """Parameters of two or more dimensions that a layer multiplies its input with, in graph order."""
    found: dict[str, None] = {}
    for node in graph.graph.nodes:
        name = str(node.target).removeprefix("aten.").split(".")[0]
        if node.op == "call_function" and name.startswith(_CONTRACTIONS):
            for source in node.all_input_nodes:
                while source.op == "call_function" and len(source.all_input_nodes) == 1:
                    source = source.all_input_nodes[0]
                if source.op == "get_attr" and _is_weight(attribute(graph, str(source.target))):
                    found[str(source.target)] = None
    return list(found)


def _is_weight(tensor: Any) -> bool:
    return isinstance(tensor, nn.Parameter) and tensor.ndim > 1 and tensor.is_floating_point()


def by_share(weights: Mapping[str, Tensor], sparsity: float, norm: float, block: int, together: bool) -> Masks:
    """Zero the share `sparsity` of blocks with the lowest norm, over all weights together or in each tensor."""
    scores = {name: block_norms(w, norm, block) for name, w in weights.items()}
    kept = _largest(scores, sparsity) if together else {n: _largest({n: s}, sparsity)[n] for n, s in scores.items()}
    return {name: _spread(kept[name], weights[name], block) for name in weights}


def by_threshold(weights: Mapping[str, Tensor], threshold: float, norm: float, block: int) -> Masks:
    """Zero the blocks whose norm is below `threshold`."""
    return {name: _spread(block_norms(w, norm, block) >= threshold, w, block) for name, w in weights.items()}


def by_pattern(weights: Mapping[str, Tensor], keep: int, of: int) -> Masks:
    """Keep the `keep` largest of every `of` consecutive inputs (dimension 1); what is left over at the end stays.

    This is the pattern of sparse tensor cores for 2 of 4 (Mishra et al. 2021, section 3.1).
    """
    masks: Masks = {}
    for name, weight in weights.items():
        rows = weight.detach().abs().movedim(1, -1)
        whole = rows.shape[-1] // of * of
        mask = torch.ones_like(rows, dtype=torch.bool)
        if whole:
            runs = rows[..., :whole].reshape(*rows.shape[:-1], -1, of)
            smallest = runs.argsort(dim=-1, stable=True)[..., : of - keep]
            kept = torch.ones_like(runs, dtype=torch.bool).scatter_(-1, smallest, False)
            mask[..., :whole] = kept.flatten(-2)
        masks[name] = mask.movedim(-1, 1)
    return masks


def block_norms(weight: Tensor, norm: float, block: int) -> Tensor:
    """Norm of every `block` consecutive inputs (dimension 1) per element; [..., blocks], the rest padded with zeros."""
    rows = weight.detach().abs().movedim(1, -1)
    if block == 1:
        return rows
    rows = F.pad(rows.double(), (0, -rows.shape[-1] % block))
    return rows.reshape(*rows.shape[:-1], -1, block).pow(norm).mean(-1).pow(1 / norm)


def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set masked weights of `model` to zero, in place."""
    with torch.no_grad():
        for name, mask in masks.items():
            weight = attribute(model, name)  # type: ignore[arg-type]
            weight.mul_(mask.to(weight.device))


def present_masks(graph: GraphModule) -> Masks:
    """Masks that keep the zeros which the weights have now."""
    return {name: attribute(graph, name).detach() != 0 for name in weight_names(graph)}


def _largest(scores: Mapping[str, Tensor], sparsity: float) -> Masks:
    """Which blocks stay when the share `sparsity` of all goes: of equal ones the first go, and none stays that is 0."""
    count = int(sparsity * sum(s.numel() for s in scores.values()))
    limit = _smallest(torch.cat([s.flatten() for s in scores.values()]), count)
    left = count - sum(int((s < limit).sum()) for s in scores.values())
    kept = {}
    for name, s in scores.items():
        kept[name] = s > limit
        if limit > 0 and (equal := (s == limit).flatten().nonzero().flatten()).numel() > left:
            kept[name].view(-1)[equal[left:]] = True
            left = 0
        elif limit > 0:
            left -= equal.numel()
    return kept


def _smallest(scores: Tensor, count: int) -> float:
    """The score of the last of `count` blocks to go."""
    if not count:
        return 0.0
    # NumPy selects in place in one copy; torch's `sort` and `kthvalue` carry an int64 index with every score.
    values = scores.cpu().to(torch.promote_types(scores.dtype, torch.float32)).numpy()
    return float(np.partition(values, count - 1)[count - 1])


def _spread(kept: Tensor, weight: Tensor, block: int) -> Tensor:
    """A mask of blocks as one of weights."""
    return kept.repeat_interleave(block, dim=-1)[..., : weight.shape[1]].movedim(-1, 1).contiguous()
