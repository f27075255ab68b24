"""hasten: the fastest version of a trained PyTorch model that provably keeps its accuracy.

Everything here is imported on first use, so that `hasten.load` works where torch is not installed.
"""

import importlib
import re
from typing import Any

_HOME = {
    "Task": "hasten.task",
    "Budget": "hasten.task",
    "cosine_similarity": "hasten.task",
    "Recipe": "hasten.recipe",
    "capture": "hasten.graph.capture",
    "compile": "hasten.compiling",
    "apply": "hasten.compiling",
    "sensitivity": "hasten.quantization.sensitivity",
    "doctor": "hasten.diagnosis.doctor",
    "run": "hasten.search.run",
    "Result": "hasten.search.run",
    "Artifact": "hasten.artifact",
    "load": "hasten.artifact",
    "Engine": "hasten.engine.engine",
    "Chain": "hasten.engine.chain",
    "split": "hasten.splitting",
    "verify": "hasten.artifact",
    "HastenError": "hasten.errors",
    "InvalidInput": "hasten.errors",
    "Unsupported": "hasten.errors",
}

__version__ = "0.1.0"
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name[:1].isupper():
        return _technique(name)
    raise AttributeError(f"module 'hasten' has no attribute {name!r}")


def _technique(name: str) -> Any:
    """`hasten.PruneFilters` is the class in `techniques/prune_filters.py`: the folder is the registry."""
    module = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
    try:
        return getattr(importlib.import_module(f"hasten.techniques.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name != f"hasten.techniques.{module}":
            raise
        raise AttributeError(f"module 'hasten' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
