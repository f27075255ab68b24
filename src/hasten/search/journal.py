"""The run folder's memory: one JSON line per event, appended and flushed, so that a killed run can be read and resumed.

Everything in a search that was measured, or that depends on the time left, goes through `Journal.once`: made the first
time, read the next. A resumed search is then the same program run again; it passes what is on record in no time and
goes on where the record ends.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hasten.errors import InvalidInput


class Journal:
    """An append-only file of JSON lines; a torn last line, left by a kill, is cut off when it is opened.

    Every line has `event`, `key` and `elapsed_s`, the seconds that the run has taken so far, over all its sessions.

    Raises:
        InvalidInput: A line before the last is no event.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._events = _read(path)
        self._known = {(e["event"], e["key"]): e for e in self._events}
        self._spent_s = float(self._events[-1]["elapsed_s"]) if self._events else 0.0
        self._started = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        """Seconds that the run has taken, over all its sessions."""
        return self._spent_s + time.perf_counter() - self._started

    def append(self, event: str, value: dict[str, Any], key: str = "") -> dict[str, Any]:
        """Add one event, force it to disk, and return it as it will be read again."""
        line = json.dumps({"event": event, "key": key, "elapsed_s": round(self.elapsed_s, 3)} | value)
        _append(self._path, f"{line}\n".encode())
        read: dict[str, Any] = json.loads(line)
        self._events.append(read)
        self._known[event, key] = read
        return read

    def once(self, event: str, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The event on record, or what `make` returns, which then is on record."""
        return self.find(event, key) or self.append(event, make(), key)

    def find(self, event: str, key: str = "") -> dict[str, Any] | None:
        """The last event of this kind and key on record, or None."""
        return self._known.get((event, key))

    def read(self, event: str | None = None) -> list[dict[str, Any]]:
        """All events on record, or those of one kind, in order."""
        return [e for e in self._events if event is None or e["event"] == event]


def _append(path: Path, data: bytes) -> None:
    """All of `data`, or, where the disk is full, nothing: half a line would make the lines after it unreadable."""
    with path.open("ab", buffering=0) as file:
        before, written = file.tell(), 0
        try:
            while written < len(data):
                written += file.write(data[written:])
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def _event(line: bytes) -> dict[str, Any]:
    """One event; raises ValueError if it is none."""
    event = json.loads(line)
    if not isinstance(event, dict) or not all(isinstance(event.get(key), str) for key in ("event", "key")):
        raise ValueError("an event has a name and a key")
    elapsed_s = event.get("elapsed_s")
    if isinstance(elapsed_s, bool) or not isinstance(elapsed_s, (int, float)) or not 0 <= elapsed_s < 1e12:
        raise ValueError("an event says when it was")
    return event


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    events = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            events.append(_event(line))
        except (ValueError, RecursionError) as error:
            raise InvalidInput(
                f"{path} must hold one JSON document per line, but line {number} is none. It was changed; start anew."
            ) from error
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return events
