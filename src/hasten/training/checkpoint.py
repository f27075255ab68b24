"""The state of a training run in one file: written whole or not at all, read without unpickling code."""

import hashlib
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten.errors import InvalidInput
from hasten.training.options import Training

_VERSION = 1
# Options that may change between the two halves of a run without changing its result.
_FREE = ("checkpoint", "checkpoint_every", "progress", "device")


def fingerprint(model: nn.Module, options: Training, steps: int) -> str:
    """What a run starts from, as a hash: initial weights, options, length. Only an equal run may resume."""
    digest = hashlib.sha256()
    settings = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in _FREE}
    digest.update(repr((sorted(settings.items()), steps)).encode())
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(repr((name, tuple(value.shape), value.dtype)).encode())
            # A clone, because a tensor that NumPy has seen cannot be resized any more, and observers resize theirs.
            digest.update(value.detach().cpu().clone().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(path: Path, run: str, state: dict[str, Any]) -> None:
    """Write `state` of the run with fingerprint `run`; a crash leaves the previous file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        torch.save({"version": _VERSION, "run": run, "state": state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load(path: Path, run: str, device: torch.device) -> dict[str, Any] | None:
    """The saved state of run `run`, or None if there is no file.

    Raises:
        InvalidInput: The file is unreadable, or of another run.
    """
    if not path.exists():
        return None
    try:
        document = torch.load(path, map_location=device, weights_only=True)
        version, owner, state = document["version"], document["run"], document["state"]
    except Exception as error:
        raise InvalidInput(
            f"`checkpoint` must be a file that training wrote, but {path} is not: {error!s:.200} Delete it."
        ) from error
    if version != _VERSION or owner != run:
        raise InvalidInput(
            f"`checkpoint` must belong to the same run, but {path} was written with other options, other initial "
            "weights or other data. Delete it, or give another path."
        )
    assert isinstance(state, dict)
    return state
