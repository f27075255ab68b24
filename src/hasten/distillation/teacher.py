"""Training batches with the teacher's answers, computed once per sample where the inputs come back unchanged."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hasten.graph.capture import as_tuple
from hasten.task import Inputs, Task, labelled, unlabelled
from hasten.training.device import autocast, to_device, to_float32
from hasten.training.randomness import isolated

_KEY_BYTES = 16
_PROBES = 4


class Pairs:
    """`(inputs, target)` from what a task has to train on; the target is None where there are no labels.

    Args:
        source: Re-iterable of `(inputs, target)`, or of inputs alone.
        form: "labelled" for `(inputs, target)`, "ignored" for the same with the target left out, "inputs".
    """

    def __init__(self, source: Iterable[Any], form: Literal["labelled", "ignored", "inputs"]) -> None:
        self.source, self.form = source, form

    @classmethod
    def of(cls, task: Task) -> "Pairs":
        """`task.train` with its labels, else `task.calibration`, else the inputs of `task.holdout`."""
        if task.train is not None:
            return cls(task.train, "labelled")
        return cls(task.holdout, "ignored") if task.calibration is None else cls(task.calibration, "inputs")

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        if self.form == "inputs":
            return ((inputs, None) for inputs in unlabelled(self.source))
        pairs = labelled(self.source, "train" if self.form == "labelled" else "holdout")
        return pairs if self.form == "labelled" else ((inputs, None) for inputs, _ in pairs)

    def __len__(self) -> int:
        """Batches per pass; counted if the source does not say."""
        try:
            return len(self.source)  # type: ignore[arg-type]
        except TypeError:
            return sum(1 for _ in self.source)

    def samples(self, batch_size: int) -> int:
        """Samples per pass, from the data set's length or the number of batches."""
        dataset: Any = getattr(self.source, "dataset", None)
        return len(dataset) if hasattr(dataset, "__len__") else len(self) * batch_size


class TeacherBatches:
    """Yields `(inputs, (target, answers))`; `answers` is the teacher's output as a tuple of float32 CPU tensors.

    Args:
        pairs: Where inputs and targets come from.
        teacher: Model in eval mode on `device`.
        device: Where the teacher runs.
        dtype: Its arithmetic, as in training.
        cache: Where answers are kept; None computes them anew in every epoch.
        channels_last: Whether the teacher reads images in NHWC memory layout.
    """

    def __init__(
        self,
        pairs: Pairs,
        teacher: nn.Module,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        cache: "AnswerCache | None" = None,
        channels_last: bool = False,
    ) -> None:
        self.channels_last = channels_last
        self.pairs, self.teacher, self.device, self.dtype, self.cache = pairs, teacher, device, dtype, cache
        # What `training.randomness` seeds.
        self.sampler = getattr(pairs.source, "sampler", None)
        self.batch_sampler = getattr(pairs.source, "batch_sampler", None)
        self.generator = getattr(pairs.source, "generator", None)

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to batches that order themselves by it."""
        set_epoch = getattr(self.pairs.source, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.pairs)

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        if self.cache is not None:
            self.cache.start_pass()
        for inputs, target in self.pairs:
            yield inputs, (target, self._answers(inputs))

    def _answers(self, inputs: Inputs) -> tuple[Tensor, ...]:
        if self.cache is None or not self.cache.useful:
            return self._ask(inputs)
        keys = sample_keys(inputs)
        answers = self.cache.get(keys)
        if answers is None:
            answers = self._ask(inputs)
            self.cache.put(keys, answers)
        return answers

    @torch.no_grad()
    def _ask(self, inputs: Inputs) -> tuple[Tensor, ...]:
        with autocast(self.device, self.dtype):
            answers = as_tuple(self.teacher(*to_device(inputs, self.device, self.channels_last)))
        return tuple(to_device(to_float32(answer), torch.device("cpu")) for answer in answers)


class AnswerCache:
    """The teacher's answers in one file: a line with their shapes, then records of a sample's key and its answers.

    Samples are known by a hash of their inputs, so any loader in any order will do. Read through a memory map, and
    again by a later process; records are only appended, and one that a crash cut short is dropped. Inputs that are
    augmented at random come back with new keys: if the second pass starts with a batch of which no sample was seen,
    the cache switches itself off.

    Args:
        path: The file; it must belong to this teacher (`teacher_key` makes a name).
        samples: Samples per epoch, as far as known.
        limit_bytes: Largest size; a data set that needs more is not cached at all.
    """

    def __init__(self, path: Path, samples: int, limit_bytes: float) -> None:
        self.path, self.samples, self.limit_bytes = path, samples, limit_bytes
        self.useful = True
        self._rows: dict[bytes, int] = {}
        self._shapes: list[torch.Size] = []
        self._record_bytes = 0
        self._count = 0
        self._map: NDArray[np.uint8] | None = None
        self._header_bytes = 0
        self._passes = 0
        self._hit_in_pass = False
        if path.exists():
            self._read()

    def start_pass(self) -> None:
        """The loader begins again."""
        self._passes += 1
        self._hit_in_pass = False

    def get(self, keys: list[bytes]) -> tuple[Tensor, ...] | None:
        """The answers of a whole batch, [rows, ...] each, or None if one is missing."""
        rows = [self._rows.get(key, -1) for key in keys]
        self._hit_in_pass = self._hit_in_pass or max(rows) >= 0
        if not self._shapes or min(rows) < 0:
            return None
        flat = torch.from_numpy(self._records()[rows, _KEY_BYTES:].copy()).view(torch.float32)
        answers, start = [], 0
        for shape in self._shapes:
            answers.append(flat[:, start : start + shape.numel()].reshape(len(keys), *shape))
            start += shape.numel()
        return tuple(answers)

    def put(self, keys: list[bytes], answers: tuple[Tensor, ...]) -> None:
        """Append the answers of a batch."""
        shapes = [answer.shape[1:] for answer in answers]
        if not self._shapes:
            self._shapes = shapes
            self._record_bytes = _KEY_BYTES + 4 * sum(shape.numel() for shape in shapes)
        grown = (self._count + len(keys)) * self._record_bytes
        estimated = self.samples * self._record_bytes
        random = self._passes > 1 and not self._hit_in_pass
        floats = all(answer.is_floating_point() for answer in answers)
        if shapes != self._shapes or not floats or random or max(grown, estimated) > self.limit_bytes:
            self.close()
            return
        flat = torch.cat([answer.float().reshape(len(keys), -1) for answer in answers], 1).contiguous().numpy()
        key_bytes = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), _KEY_BYTES)
        records = np.concatenate([key_bytes, flat.view(np.uint8)], axis=1)
        if self._count == 0:
            self._create()
        with self.path.open("ab", buffering=0) as file:
            file.write(records.tobytes())  # in one call, so that a kill leaves whole records and one cut short
        for key in keys:
            self._rows[key] = self._count
            self._count += 1
        self._map = None

    def close(self) -> None:
        """Stop caching and delete the file."""
        self.useful, self._map, self._rows = False, None, {}
        self.path.unlink(missing_ok=True)

    def _create(self) -> None:
        header = json.dumps(self._shapes).encode() + b"\n"
        self._header_bytes = len(header)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(header)

    def _read(self) -> None:
        with self.path.open("rb") as file:
            header = file.readline()
        if not header.endswith(b"\n"):
            return  # killed while creating it
        self._shapes = [torch.Size(shape) for shape in json.loads(header)]
        self._header_bytes = len(header)
        self._record_bytes = _KEY_BYTES + 4 * sum(shape.numel() for shape in self._shapes)
        self._count = (self.path.stat().st_size - self._header_bytes) // self._record_bytes
        os.truncate(self.path, self._header_bytes + self._count * self._record_bytes)
        if self._count:
            keys = self._records()[:, :_KEY_BYTES].tobytes()
            self._rows = {keys[_KEY_BYTES * i : _KEY_BYTES * (i + 1)]: i for i in range(self._count)}

    def _records(self) -> NDArray[np.uint8]:
        if self._map is None:
            self._map = np.memmap(self.path, np.uint8, "r", self._header_bytes, (self._count, self._record_bytes))
        return self._map


def sample_keys(inputs: Inputs) -> list[bytes]:
    """A hash of every sample's inputs, shapes and dtypes included."""
    arrays = [np.ascontiguousarray(_as_bytes(value)) for value in inputs]
    form = repr([(tuple(value.shape[1:]), str(value.dtype)) for value in inputs]).encode()
    keys = []
    for index in range(len(inputs[0])):
        digest = hashlib.blake2b(form, digest_size=_KEY_BYTES)
        for array in arrays:
            digest.update(array[index])
        keys.append(digest.digest())
    return keys


def teacher_key(teacher: nn.Module) -> str:
    """A short hash of a teacher's weights and structure."""
    digest = hashlib.blake2b(getattr(teacher, "code", "").encode(), digest_size=8)
    for name, value in teacher.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(name.encode())
            digest.update(_as_bytes(value.unsqueeze(0))[0])
    return digest.hexdigest()


def is_random(batches: Iterable[Any]) -> bool:
    """Whether a DataLoader's dataset gives different inputs when asked twice for the same samples.

    Anything else is taken for repeatable; `AnswerCache` notices later if it is not.
    """
    dataset: Any = getattr(batches, "dataset", None)
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")) or len(dataset) == 0:
        return False
    with isolated():
        step = max(1, len(dataset) // _PROBES)
        return any(_content(dataset[index]) != _content(dataset[index]) for index in range(0, len(dataset), step))


def _content(value: Any) -> bytes:
    leaves = torch.utils._pytree.tree_leaves(value)
    return b"".join(_as_bytes(x.unsqueeze(0)).tobytes() if isinstance(x, Tensor) else repr(x).encode() for x in leaves)


def _as_bytes(value: Tensor) -> NDArray[np.uint8]:
    """[N, bytes of one sample]."""
    return value.detach().cpu().contiguous().reshape(len(value), -1).clone().view(torch.uint8).numpy()
