"""Random numbers of a training run: isolated from the caller, seeded per epoch, saved and restored for a resume."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def isolated() -> Iterator[None]:
    """Leave the global generators of torch, NumPy and Python, and cuDNN's settings, as they were found."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    try:
        cudnn.deterministic, cudnn.benchmark = True, False
        with torch.random.fork_rng():
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = flags
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def seed_epoch(batches: Any, seed: int, epoch: int) -> None:
    """Seed everything that orders or augments `batches` as a function of `seed` and `epoch` alone.

    An epoch can then be replayed without those before it. Covers the global generators, the `generator` of a
    DataLoader and of its sampler, and anything with `set_epoch`.
    """
    # SeedSequence mixes both numbers, so that (0, 1) and (1, 0) do not collide.
    mixed = int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint32)[0])
    torch.manual_seed(mixed)
    np.random.seed(mixed)
    random.seed(mixed)
    for part in (batches, getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None)):
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(mixed)
        set_epoch = getattr(part, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)


def state() -> dict[str, Any]:
    """The global generators' state as tensors and plain values, which load without unpickling code."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), gauss],
        "python": random.getstate(),
    }


def restore(saved: dict[str, Any]) -> None:
    """Set the global generators to what `state` returned."""
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(saved["cuda"])
    name, keys, position, has_gauss, gauss = saved["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, values, python_gauss = saved["python"]
    random.setstate((version, tuple(values), python_gauss))
