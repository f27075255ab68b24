"""The run folder's memory: one JSON line per event, appended and flushed, so that a killed run can still be read."""

import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """An append-only file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, kind: str, value: dict[str, Any]) -> None:
        """Add one event and force it to disk."""
        with self._path.open("a") as file:
            file.write(json.dumps({"event": kind} | value) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All whole events; a torn last line, left by a kill, is passed over."""
        if not self._path.exists():
            return []
        lines = self._path.read_text().split("\n")
        events = []
        for index, line in enumerate(lines):
            if not line:
                continue
            try:
                events.append(json.loads(line))
            except ValueError:
                if index < len(lines) - 1 and any(lines[index + 1 :]):
                    raise
        return events
