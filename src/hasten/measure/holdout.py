"""The holdout on disk, split once: a search part that steers, and a certifying part that only certifies.

Written as raw files so that every measuring process can map it, whatever loader it came from.
"""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from hasten.errors import InvalidInput
from hasten.measure.arrays import ArrayFile, ArrayWriter
from hasten.task import Inputs, Task, labelled

# Choosing among candidates needs far fewer samples than proving a bound of one point.
SEARCH_SHARE = 1 / 4


@dataclass(frozen=True)
class Holdout:
    """Inputs as files, targets in memory, and the two parts.

    Attributes:
        inputs: One file per model input, all samples.
        targets: Per-sample targets, a pytree of tensors [n, ...]; None without labels.
        search: Row numbers of the part that steers the search, ascending.
        certify: Row numbers of the part that only certifies, ascending.
        seed: Decided the parts.
    """

    inputs: list[ArrayFile]
    targets: Any
    search: np.ndarray
    certify: np.ndarray
    seed: int

    def __len__(self) -> int:
        return self.inputs[0].shape[0]

    @functools.cached_property
    def content_sha256(self) -> str:
        """Of all inputs and targets, which says whether two holdouts are the same data."""
        digest = hashlib.sha256()
        for file in self.inputs:
            with file.path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        add_values(digest, self.targets)
        return digest.hexdigest()

    def targets_of(self, rows: np.ndarray) -> Any:
        """The targets of `rows`."""
        index = torch.from_numpy(rows)
        return pytree.tree_map(lambda t: t[index], self.targets)

    def batches(self, rows: np.ndarray, batch: int) -> "HoldoutBatches":
        """`rows` as a re-iterable of (inputs, target) batches, as a task wants its `holdout`."""
        return HoldoutBatches(self, rows, batch)


def add_values(digest: Any, values: Any) -> None:
    """Add every leaf of a pytree to a hash."""
    for leaf in pytree.tree_leaves(values):
        if isinstance(leaf, Tensor):
            digest.update(repr((tuple(leaf.shape), leaf.dtype)).encode())
            digest.update(leaf.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(leaf).encode())


@dataclass(frozen=True)
class HoldoutBatches:
    """Some rows of a holdout as batches; iterating again gives the same batches."""

    holdout: Holdout
    rows: np.ndarray
    batch: int

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch)

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        arrays = [x.open() for x in self.holdout.inputs]
        for start in range(0, len(self.rows), self.batch):
            chosen = self.rows[start : start + self.batch]
            inputs = tuple(torch.from_numpy(np.array(x[chosen])) for x in arrays)
            yield inputs, None if self.holdout.targets is None else self.holdout.targets_of(chosen)


def store_holdout(task: Task, folder: Path, seed: int) -> Holdout:
    """Read `task.holdout` once, write its inputs to `folder`, and split its rows at random by `seed`.

    Raises:
        InvalidInput: The holdout is empty, or its batches disagree with each other or with `task.example`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writers: list[ArrayWriter] = []
    targets: list[Any] = []
    try:
        for number, (inputs, target) in enumerate(labelled(task.holdout)):
            _check_like_example(inputs, task.example, number)
            _check_kinds(inputs)
            arrays = [x.detach().cpu().numpy() for x in inputs]
            if not writers:
                writers = [ArrayWriter(folder / f"input_{i}.bin", x) for i, x in enumerate(arrays)]
            else:
                for writer, x in zip(writers, arrays, strict=True):
                    writer.append(x)
            targets.append(target)
    finally:  # also when the loader raises half-way
        files = [writer.close() for writer in writers]
    count = files[0].shape[0] if files else 0
    if count < 2:
        raise InvalidInput(
            f"`holdout` must hold at least 2 samples, but yielded {count}. Pass a loader of data kept out of training."
        )
    order = np.random.default_rng(seed).permutation(count)
    cut = max(1, round(len(order) * SEARCH_SHARE))
    return Holdout(files, _join(targets), np.sort(order[:cut]), np.sort(order[cut:]), seed)


def _check_kinds(inputs: Inputs) -> None:
    for index, x in enumerate(inputs):
        if x.dtype == torch.bfloat16 or x.is_quantized or x.layout != torch.strided:
            raise InvalidInput(
                f"`holdout` must yield dense inputs of a dtype that NumPy has, but input {index} is {x.dtype}, "
                f"{x.layout}. Give float32, and cast in `preprocess`."
            )


def _check_like_example(inputs: Inputs, example: Inputs, number: int) -> None:
    got, want = ([(tuple(x.shape[1:]), x.dtype) for x in part] for part in (inputs, example))
    if got != want:
        same_shapes = [shape for shape, _ in got] == [shape for shape, _ in want]
        remedy = "Cast one of them" if same_shapes else "Resize or pad every sample to one shape"
        raise InvalidInput(
            f"`holdout` must yield inputs shaped like `example` beyond the batch, {want}, "
            f"but batch {number} has {got}. {remedy}."
        )
    for index, x in enumerate(inputs):
        if x.is_floating_point() and not torch.isfinite(x).all():
            raise InvalidInput(f"`holdout` must yield finite inputs, but batch {number}, input {index} has NaN or inf.")


def _join(targets: list[Any]) -> Any:
    missing = [target is None for target in targets]
    if all(missing):
        return None
    if any(missing):
        raise InvalidInput("`holdout` must yield a target in every batch or in none, but some batches have None.")
    try:
        return pytree.tree_map(lambda *parts: torch.cat([_as_tensor(p) for p in parts]), targets[0], *targets[1:])
    except (RuntimeError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"`holdout` must yield targets as tensors of one shape beyond the batch, but: {error}"
        ) from error


def _as_tensor(value: Any) -> Tensor:
    return value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(value)
