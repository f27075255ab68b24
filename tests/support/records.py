"""Which dataclasses of a package can be changed after they were made."""

import dataclasses
import importlib
import pkgutil
from types import ModuleType


def changeable(package: ModuleType) -> set[str]:
    """Names of the dataclasses that are not frozen; there are others, or nothing was looked at."""
    found = {}
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.name:
                found[name] = value.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert any(found.values())
    return {name for name, frozen in found.items() if not frozen}
