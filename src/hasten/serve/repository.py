"""What a server serves: models by name and version, loaded, replaced without a lost request, and taken away."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from hasten.engine.engine import Engine
from hasten.errors import InvalidInput
from hasten.serve import memory
from hasten.serve.models import Entry, Model, ServeLimits


class UnknownModel(InvalidInput):
    """A model or version that is not served."""


class Repository:
    """All models by name and version.

    Args:
        entries: What may be served; nothing else can be loaded by a client.
        limits: For every model.
        engine: Options of `Engine`.

    Attributes:
        draining: Set when the server is about to end: it says that it is not ready any more.
    """

    def __init__(self, entries: Sequence[Entry], limits: ServeLimits, engine: Mapping[str, Any] | None = None) -> None:
        if not entries:
            raise InvalidInput("A server must have at least one model, but got none.")
        seen = [(entry.name, entry.version) for entry in entries]
        for pair in seen:
            if seen.count(pair) > 1:
                raise InvalidInput(f"Every model must have its own name and version, but {pair} is there twice.")
        self.entries = list(entries)
        self.limits = limits
        self._options = dict(engine or {})
        self._models: dict[str, dict[str, Model]] = {}
        self._loading = asyncio.Lock()
        self.draining = False

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return bool(self._models) and not self.draining

    def open(self) -> None:
        """Load everything."""
        for entry in self.entries:
            self._models.setdefault(entry.name, {})[entry.version] = self._load(entry)

    def _load(self, entry: Entry) -> Model:
        bound = None if self.limits.bound_s is None else self.limits.bound_s * 1e3
        return Model(entry, Engine(*entry.paths, bound_ms=bound, **self._options), self.limits)

    def get(self, name: str, version: str = "") -> Model:
        """The model; without a version the one with the highest number. Raises `UnknownModel`."""
        versions = self._models.get(name)
        if not versions:
            raise UnknownModel(f"model must be one of {', '.join(self._models) or '(none)'}, but got {name!r:.100}.")
        if not version:
            return versions[max(versions, key=_number)]
        if version not in versions:
            raise UnknownModel(f"version of {name} must be one of {', '.join(versions)}, but got {version!r:.100}.")
        return versions[version]

    def versions(self, name: str) -> list[str]:
        """The versions of a model that are loaded."""
        return sorted(self._models.get(name, {}), key=_number)

    def models(self) -> list[Model]:
        """Everything that is loaded."""
        return [model for versions in self._models.values() for model in versions.values()]

    def index(self) -> list[dict[str, str]]:
        """Name, version and state of everything that may be served."""
        return [
            {
                "name": entry.name,
                "version": entry.version,
                "state": "READY" if entry.version in self._models.get(entry.name, {}) else "UNAVAILABLE",
                "reason": "" if entry.version in self._models.get(entry.name, {}) else "unloaded",
            }
            for entry in self.entries
        ]

    async def load(self, name: str) -> None:
        """Load a model again from its folder; requests go to the old one until the new one is ready."""
        async with self._loading:
            for entry in self._entries(name):
                fresh = await asyncio.to_thread(self._load, entry)
                old = self._models.setdefault(name, {}).get(entry.version)
                self._models[name][entry.version] = fresh
                if old is not None:
                    fresh.counters = old.counters
                    await asyncio.to_thread(old.engine.close)
            del old
            await asyncio.to_thread(memory.give_back)

    async def unload(self, name: str) -> None:
        """Take a model away after answering what it has taken."""
        async with self._loading:
            self._entries(name)
            for model in self._models.pop(name, {}).values():
                await asyncio.to_thread(model.engine.close)
                del model
            await asyncio.to_thread(memory.give_back)

    def _entries(self, name: str) -> list[Entry]:
        found = [entry for entry in self.entries if entry.name == name]
        if not found:
            names = ", ".join(sorted({entry.name for entry in self.entries}))
            raise UnknownModel(f"model must be one of {names}, but got {name!r:.100}.")
        return found

    def close(self) -> None:
        """Answer what was taken, then end every engine."""
        for model in self.models():
            model.engine.close()


def _number(version: str) -> tuple[int, str]:
    return (int(version), "") if version.isdecimal() else (-1, version)
