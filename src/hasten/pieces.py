"""Programs of one batch size, run on any number of rows."""

from collections.abc import Callable, Sequence

import numpy as np


def in_pieces(
    run: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]], size: int
) -> Callable[..., tuple[np.ndarray, ...]]:
    """A program over `run`, which takes `size` rows; the last piece is filled up and its surplus cut off."""

    def program(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        rows = len(inputs[0])
        if rows == size:
            return tuple(run(inputs))
        pieces = [
            run([np.resize(x[start : start + size], (size, *x.shape[1:])) for x in inputs])
            for start in range(0, rows, size)
        ]
        return tuple(np.concatenate(parts)[:rows] for parts in zip(*pieces, strict=True))

    return program
