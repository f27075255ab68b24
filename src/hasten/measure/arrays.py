"""Arrays that several processes read: a raw file mapped into memory, described by its shape and dtype."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np


@dataclass(frozen=True)
class ArrayFile:
    """A C-contiguous array in a raw file.

    Attributes:
        path: The file; its size is the product of `shape` times the size of `dtype`.
        shape: Rows first.
        dtype: numpy's name of the element type.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: str

    def open(self) -> np.ndarray:
        """The array, read-only, paged in as it is touched."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=self.shape)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"path": str(self.path), "shape": list(self.shape), "dtype": self.dtype}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(Path(value["path"]), tuple(value["shape"]), value["dtype"])


class ArrayWriter:
    """Appends batches of rows to a raw file whose number of rows is not known beforehand."""

    def __init__(self, path: Path, first: np.ndarray) -> None:
        self._path, self._rows, self._row_shape, self._dtype = path, 0, first.shape[1:], first.dtype
        self._file: BinaryIO = path.open("wb")
        self.append(first)

    def append(self, batch: np.ndarray) -> None:
        """Append [n, ...] rows of the same shape and dtype as the first batch; raises ValueError otherwise."""
        if batch.shape[1:] != self._row_shape or batch.dtype != self._dtype:
            raise ValueError(
                f"every batch must hold rows of shape {self._row_shape} and dtype {self._dtype}, "
                f"but got {batch.shape[1:]} and {batch.dtype}"
            )
        self._file.write(np.ascontiguousarray(batch).data)
        self._rows += len(batch)

    def close(self) -> ArrayFile:
        """Finish the file."""
        self._file.close()
        return ArrayFile(self._path, (self._rows, *self._row_shape), str(self._dtype))
