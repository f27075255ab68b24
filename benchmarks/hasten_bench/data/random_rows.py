"""Random weights and random inputs: enough to compare speed, and nothing else."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from hasten_bench.material import Material, Part

ROWS = 64


def images(network: Callable[[], nn.Module], size: int = 224, rows: int = ROWS) -> Material:
    """Standard normal images [rows, 3, size, size]."""
    rng = np.random.default_rng(0)
    return _random(network, rng.standard_normal((rows, 3, size, size), np.float32))


def tokens(network: Callable[[], nn.Module], length: int, vocabulary: int = 30522) -> Material:
    """Random ids and full masks, [64, length] int64 each."""
    ids = np.random.default_rng(0).integers(0, vocabulary, (ROWS, length))
    return _random(network, ids, np.ones_like(ids))


def decoding(
    network: Callable[[], nn.Module], cache_shape: tuple[int, ...], vocabulary: int, rows: int = 8
) -> Material:
    """Random tokens [rows, 1] and a random cache [rows, *cache_shape]."""
    rng = np.random.default_rng(0)
    token = rng.integers(0, vocabulary, (rows, 1))
    return _random(network, token, rng.standard_normal((rows, *cache_shape), np.float32))


def _random(network: Callable[[], nn.Module], *inputs: np.ndarray) -> Material:
    torch.manual_seed(0)
    model = network()
    settle_batch_norms(model, inputs)
    return Material(weights=model.state_dict(), calibration=Part(inputs))


def settle_batch_norms(model: nn.Module, inputs: tuple[np.ndarray, ...]) -> None:
    """Give batch norms the statistics of the data: with random weights activations would grow layer by layer."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = None
    model.train()
    with torch.no_grad():
        model(*(torch.from_numpy(x[:16]) for x in inputs))
    model.eval()
