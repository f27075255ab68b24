"""Round weights so that a layer's output, not each weight, stays close: later weights make up for earlier errors.

Source: Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
section 3, here for convolutions too, and on the covariance of the inputs instead of their second moment where the
layer has a bias to take up the mean.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from hasten.graph.layers import CONVOLUTIONS

_DAMPING = 0.01
_MOST_POSITIONS = 16384


def round_weights(weight: Tensor, scale: Tensor, covariance: Tensor, low: int, high: int) -> Tensor:
    """Integers for `weight`, each chosen so that the remaining weights can best undo its error.

    Args:
        weight: Float weights, [groups, outputs per group, k].
        scale: Step of every weight, [groups, outputs per group, k], or with a last dimension of 1.
        covariance: Of the k inputs of every group, [groups, k, k].
        low, high: Range of the integers.

    Returns:
        Integers as float32, [groups, outputs per group, k].
    """
    size = covariance.shape[-1]
    power = covariance.diagonal(dim1=1, dim2=2)
    # The inputs with most power are rounded first, while most weights are left to make up for them.
    order = power.mean(0).argsort(descending=True)
    damping = _DAMPING * power.mean(1).clamp_min(1e-12)[:, None, None] * torch.eye(size)
    ordered = (covariance + damping)[:, order][:, :, order].double()
    spread = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(ordered)), upper=True).float()
    left, step = weight[:, :, order].clone(), scale.expand_as(weight)[:, :, order]
    integers = torch.empty_like(left)
    for j in range(size):
        integers[:, :, j] = torch.clamp(torch.round(left[:, :, j] / step[:, :, j]), low, high)
        error = (left[:, :, j] - integers[:, :, j] * step[:, :, j]) / spread[:, j, j, None]
        left[:, :, j + 1 :] -= error[:, :, None] * spread[:, None, j, j + 1 :]
    found = integers[:, :, order.argsort()]
    # The choice is greedy and now and then loses to rounding each weight by itself; take the better one per channel.
    return better(weight, scale, covariance, found, nearest(weight, scale, covariance, low, high))


def nearest(weight: Tensor, scale: Tensor, covariance: Tensor, low: int, high: int) -> Tensor:
    """Every weight to the nearest integer, whatever its inputs; arguments and result as of `round_weights`."""
    return torch.clamp(torch.round(weight / scale), low, high)


def better(weight: Tensor, scale: Tensor, covariance: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Of two ways to round, per output channel the one with the smaller expected error of its output."""
    wins = output_error(weight, scale, covariance, first) < output_error(weight, scale, covariance, second)
    return torch.where(wins[:, :, None], first, second)


def output_error(weight: Tensor, scale: Tensor, covariance: Tensor, integers: Tensor) -> Tensor:
    """Expected squared error of every output channel, [groups, outputs per group]."""
    error = integers * scale - weight
    return (error @ covariance * error).sum(2)


def input_moments(layer: Node, x: Tensor, weight: Tensor, *, centred: bool) -> Tensor:
    """Second moments of what each output position of a layer sums over, [groups, k, k].

    Args:
        layer: A convolution or linear layer.
        x: Its input.
        weight: Its weight; [outputs, k] for a linear layer, [outputs, inputs per group, *kernel] for a convolution.
        centred: Around the mean (the covariance), where a bias takes the mean up; else around zero.
    """
    patches = _patches(layer, x, weight)
    if centred:
        patches = patches - patches.mean(2, keepdim=True)
    return patches @ patches.mT / patches.shape[2]


def groups_of(layer: Node) -> int:
    """The number of groups of a convolution; 1 for a linear layer."""
    group_argument = 6
    groups = layer.args[group_argument] if len(layer.args) > group_argument else 1
    return groups if layer.target in CONVOLUTIONS and isinstance(groups, int) else 1


def can_round(layer: Node, weight: Tensor) -> bool:
    """Whether the layer's patches can be laid out: linear layers and 2-d convolutions, and few enough inputs."""
    most_inputs = 4608  # a 3x3 convolution over 512 channels; the work grows with the cube
    plain = weight.ndim == 2 or layer.target is torch.ops.aten.conv2d.default
    return plain and weight[0].numel() <= most_inputs and not isinstance(_pair(layer, 4, 0)[0], str)


def _patches(layer: Node, x: Tensor, weight: Tensor) -> Tensor:
    """What output positions sum over, [groups, k, positions]; of a large map only every so many rows and columns."""
    if weight.ndim == 2:
        rows = x.reshape(-1, x.shape[-1])
        return rows[:: -(-len(rows) // _MOST_POSITIONS)].T[None]
    groups = groups_of(layer)
    stride, padding, dilation = (_pair(layer, i, default) for i, default in ((3, 1), (4, 0), (5, 1)))
    positions = x.shape[0] * x.shape[2] * x.shape[3] / (stride[0] * stride[1])
    skip = math.ceil(math.sqrt(max(1.0, positions / _MOST_POSITIONS)))
    coarse = (stride[0] * skip, stride[1] * skip)
    unfolded = F.unfold(x, (weight.shape[2], weight.shape[3]), dilation, padding, coarse)
    samples, _, positions = unfolded.shape
    return unfolded.view(samples, groups, -1, positions).permute(1, 2, 0, 3).reshape(groups, -1, samples * positions)


def _pair(layer: Node, index: int, default: int) -> tuple[int, int]:
    value: Any = layer.args[index] if len(layer.args) > index else default
    both = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
    return both if len(both) == 2 else (both[0], both[0])
