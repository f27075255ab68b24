"""hasten: the fastest version of a trained PyTorch model that provably keeps its accuracy.

Everything here is imported on first use, so that `hasten.load` works where torch is not installed.
"""

import importlib
from typing import Any

_HOME = {
    "Task": "hasten.task",
    "Budget": "hasten.task",
    "cosine_similarity": "hasten.task",
    "Recipe": "hasten.recipe",
    "capture": "hasten.graph.capture",
    "HastenError": "hasten.errors",
    "InvalidInput": "hasten.errors",
    "Unsupported": "hasten.errors",
}

__version__ = "0.1.0"
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hasten' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
