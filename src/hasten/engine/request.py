"""A request's arrays on their way in and out: checking, gathering into batches, assembling answers."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hasten.engine.work import Batch, Work
from hasten.errors import InvalidInput

Outputs = tuple[np.ndarray, ...]


@dataclass(eq=False, slots=True)
class Request:
    """What belongs to a `Work`: its inputs [rows, ...], whom to tell, and the answered parts (start, stop, outputs)."""

    inputs: Sequence[np.ndarray]
    done: Callable[[Outputs | None, BaseException | None], None]
    parts: list[tuple[int, int, Outputs]] = field(default_factory=list)

    def assemble(self, rows: int) -> Outputs:
        """The outputs of all rows, in order; a request answered in one part is not copied."""
        for start, stop, part in self.parts:
            if stop - start == rows:
                return part
        outputs = tuple(np.empty((rows, *y.shape[1:]), y.dtype) for y in self.parts[0][2])
        for start, stop, part in self.parts:
            for whole, y in zip(outputs, part, strict=True):
                whole[start:stop] = y
        return outputs


class Answer(Future[Outputs]):
    """The future of a request. It and its work know each other only while it waits: what it holds goes with the last
    reference, not with the garbage collector's next round."""

    _work: Work | None = None

    def belongs_to(self, work: Work) -> None:
        """Say whose answer this is."""
        self._work = work
        if self.done():
            self._let_go()

    def settle(self, outputs: Outputs | None, error: BaseException | None) -> None:
        """Take the answer."""
        if not self.set_running_or_notify_cancel():
            return
        if error is not None:
            self.set_exception(error)
        else:
            assert outputs is not None
            self.set_result(outputs)
        self._work = None

    def cancel(self) -> bool:
        """Nobody waits any more: the rows need not run."""
        cancelled = super().cancel()
        if cancelled:
            self._let_go()
        return cancelled

    def _let_go(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work.cancelled = self.cancelled()


def checked_inputs(inputs: Sequence[Any], specs: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    """The inputs as arrays that fit `specs` (empty: anything with rows).

    Raises:
        InvalidInput: The wrong number, dtype or shape, no rows, or different numbers of rows.
    """
    arrays = [np.asarray(x) for x in inputs]
    if specs and len(arrays) != len(specs):
        names = ", ".join(spec["name"] for spec in specs)
        raise InvalidInput(f"A request must have {len(specs)} inputs ({names}), but got {len(arrays)}.")
    for x, spec in zip(arrays, specs, strict=False):
        check_input(x.dtype, x.shape, spec)
    if not arrays or arrays[0].ndim == 0 or len(arrays[0]) == 0:
        raise InvalidInput("A request must have at least one row, but got none.")
    if len({len(x) for x in arrays}) > 1:
        raise InvalidInput(f"All inputs of a request must have as many rows, but got {[len(x) for x in arrays]}.")
    return arrays


def check_input(dtype: np.dtype, shape: Sequence[int], spec: Mapping[str, Any]) -> None:
    """Raise `InvalidInput` unless an array of `dtype` and `shape` fits `spec` (name, dtype, shape; None is any)."""
    name, want = spec["name"], spec["shape"]
    if dtype != np.dtype(spec["dtype"]):
        raise InvalidInput(f"Input {name!r} must have dtype {spec['dtype']}, but got {dtype}. Cast it.")
    if len(shape) != len(want) or any(w not in (None, s) for w, s in zip(want, shape, strict=True)):
        raise InvalidInput(f"Input {name!r} must have shape {list(want)} (None: any), but got {list(shape)}.")


def gather(batch: Batch, fixed: int | None) -> list[np.ndarray]:
    """The inputs of a batch [rows, ...]; a view where one request is the whole batch, filled up to `fixed` rows."""
    pieces = batch.pieces
    requests: list[Request] = [piece.work.payload for piece in pieces]
    count = len(requests[0].inputs)
    if len(pieces) == 1:
        first = pieces[0]
        arrays = [x[first.start : first.stop] for x in requests[0].inputs]
    else:
        arrays = [
            np.concatenate([r.inputs[i][p.start : p.stop] for r, p in zip(requests, pieces, strict=True)])
            for i in range(count)
        ]
    if fixed is not None and batch.rows < fixed:
        arrays = [np.take(x, np.arange(fixed), axis=0, mode="wrap") for x in arrays]
    return arrays
