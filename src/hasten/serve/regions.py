"""System shared memory that clients register and then name instead of sending tensors.

A region is read and written by system calls and never mapped: whoever owns it may shrink it at any time, and touching
mapped memory that is no longer there would end the server.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.errors import InvalidInput

_MOST_REGIONS = 1024
_LARGEST_TENSOR_BYTES = 2**31


@dataclass(frozen=True)
class _Region:
    key: str
    offset: int
    size: int
    handle: int


class Regions:
    """Registered system shared memory; without `allowed` every use of it is refused.

    A client names a region of /dev/shm, so only clients on this machine gain from it, and only those may use it.
    """

    def __init__(self, allowed: bool) -> None:
        self._allowed = allowed
        self._regions: dict[str, _Region] = {}

    def register(self, name: str, key: Any, offset: Any, size: Any) -> None:
        """Open `size` bytes at `offset` of the shared memory object `key`; raises `InvalidInput` if it cannot."""
        if not self._allowed:
            raise InvalidInput("Shared memory must be allowed by `--shared-memory`, but is not.")
        bare = key.removeprefix("/") if isinstance(key, str) else ""
        if not bare or "/" in bare or bare.startswith(".") or "\0" in bare:
            raise InvalidInput(f"`key` must be the name of a shared memory object, but got {key!r:.100}.")
        if type(offset) is not int or type(size) is not int or offset < 0 or size <= 0:
            raise InvalidInput(
                f"`offset` and `byte_size` must be sizes in bytes, but got {offset!r:.50}, {size!r:.50}."
            )
        if name in self._regions:
            raise InvalidInput(f"The region {name!r:.100} must not be registered yet, but is.")
        if len(self._regions) >= _MOST_REGIONS:
            raise InvalidInput(f"At most {_MOST_REGIONS} regions may be registered at a time. Unregister one.")
        try:
            handle = os.open(f"/dev/shm/{bare}", os.O_RDWR | os.O_NOFOLLOW)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InvalidInput(f"The shared memory object {bare!r:.100} must exist, but: {reason}.") from None
        if os.fstat(handle).st_size < offset + size:
            os.close(handle)
            raise InvalidInput(f"The shared memory object {bare!r:.80} must have {offset + size} bytes, but has fewer.")
        self._regions[name] = _Region(key, offset, size, handle)

    def unregister(self, name: str | None) -> None:
        """Forget a region, or all of them."""
        for found in list(self._regions) if name is None else [name]:
            if (region := self._regions.pop(found, None)) is not None:
                os.close(region.handle)

    def status(self, name: str | None = None) -> list[dict[str, Any]]:
        """Name, key, offset and size of the registered regions."""
        if name is not None and name not in self._regions:
            raise InvalidInput(f"The region {name!r:.100} must be registered, but is not.")
        return [
            {"name": found, "key": region.key, "offset": region.offset, "byte_size": region.size}
            for found, region in self._regions.items()
            if name in (None, found)
        ]

    def read(self, parameters: Mapping[str, Any]) -> bytes:
        """The bytes that a tensor's parameters name."""
        region, offset, size = self._find(parameters)
        data = os.pread(region.handle, size, offset)
        if len(data) < size:
            raise InvalidInput(f"A region must keep its size while it is registered, but {region.key!r:.100} shrank.")
        return data

    def write(self, parameters: Mapping[str, Any], array: np.ndarray) -> None:
        """Copy an output to where its parameters say."""
        region, offset, size = self._find(parameters)
        if size < array.nbytes:
            raise InvalidInput(f"The region must have {array.nbytes} bytes for the output, but has {size}.")
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(region.handle, data[written:], offset + written)
        except OSError as error:  # it shrank, and there is no memory to let it grow again
            raise InvalidInput(f"The region must take the output, but: {error.strerror}.") from None

    def _find(self, parameters: Mapping[str, Any]) -> tuple[_Region, int, int]:
        """A region, and where in its object a tensor lies."""
        name, size = parameters.get("shared_memory_region"), parameters.get("shared_memory_byte_size")
        offset = parameters.get("shared_memory_offset", 0)
        region = self._regions.get(name) if isinstance(name, str) else None
        if region is None:
            raise InvalidInput(f"The region {name!r:.100} must be registered, but is not.")
        if type(size) is not int or type(offset) is not int or offset < 0 or not 0 <= size <= region.size - offset:
            raise InvalidInput(
                f"A tensor must lie inside its region of {region.size} bytes, but has {offset!r:.50}, {size!r:.50}."
            )
        if size > _LARGEST_TENSOR_BYTES:
            raise InvalidInput(f"A tensor must have at most {_LARGEST_TENSOR_BYTES} bytes, but has {size}.")
        return region, region.offset + offset, size
