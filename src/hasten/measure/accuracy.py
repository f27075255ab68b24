"""The score of a compiled program: its outputs, computed in its own process, judged by the task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from hasten.errors import InvalidInput, Unsupported
from hasten.measure.arrays import ArrayFile
from hasten.measure.holdout import Holdout
from hasten.measure.jackknife import pseudo_values
from hasten.measure.worker import Worker
from hasten.task import Outputs, Score, Task, default_score

_CHUNK = 256


def outputs_of(worker: Worker, holdout: Holdout, rows: np.ndarray, folder: Path, batch: int) -> list[ArrayFile]:
    """The outputs of a program on `rows` of the holdout, one file per model output, in `folder`.

    Raises:
        Unsupported: The program gives NaN or infinity.
    """
    files = worker.infer(holdout.inputs, rows, folder, batch)
    for index, file in enumerate(files):
        array = file.open()
        if np.issubdtype(array.dtype, np.floating):
            bad = sum(int((~np.isfinite(array[i : i + _CHUNK])).sum()) for i in range(0, len(array), _CHUNK))
            if bad:
                raise Unsupported(f"output {index} has {bad} values that are NaN or infinite")
    return files


def scores(task: Task, outputs: Sequence[ArrayFile], targets: Any, rows: np.ndarray | None = None) -> np.ndarray:
    """`task.score` of every sample, [n] float64; of a `task.metric` what every part contributes, [parts].

    Args:
        task: Holds the score or the metric; neither means top-1.
        outputs: One file per model output.
        targets: A pytree of tensors [n, ...].
        rows: The n rows of the files to judge, [n]. None: all.

    Raises:
        InvalidInput: The score raises, returns the wrong shape, or is not finite; the metric likewise.
    """
    arrays = [file.open() for file in outputs]
    rows = np.arange(len(arrays[0])) if rows is None else rows
    if task.metric is not None:
        return pseudo_values(task.metric, _output(arrays, rows), targets)
    score = task.score or default_score
    found = []
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        target = pytree.tree_map(lambda t, part=part: t[part], targets)
        found.append(_checked(score, _output(arrays, rows[part]), target, len(rows[part])))
    return np.concatenate(found)


def _output(arrays: Sequence[np.ndarray], rows: np.ndarray | slice) -> Outputs:
    tensors = tuple(torch.from_numpy(np.array(x[rows])) for x in arrays)
    return tensors[0] if len(tensors) == 1 else tensors


def reference_targets(outputs: Sequence[ArrayFile]) -> Any:
    """The original's outputs as targets, for a holdout without labels."""
    return _output([file.open() for file in outputs], slice(None))


def _checked(score: Score, output: Any, target: Any, rows: int) -> np.ndarray:
    try:
        value = score(output, target)
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(
            f"`score` must accept (output, target), but raised {type(error).__name__}: {str(error)[:300]}. "
            "Pass `score=` to the task that fits its outputs and targets."
        ) from error
    if not isinstance(value, Tensor) or tuple(value.shape) != (rows,):
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise InvalidInput(
            f"`score` must return a tensor of shape [N] = ({rows},), one number per sample, but got {got}. "
            "Do not average over the batch."
        )
    result = value.detach().to(torch.float64).numpy()
    if not np.isfinite(result).all():
        raise InvalidInput("`score` must return finite numbers, but got NaN or infinity.")
    return result
