"""What a workload is made of before it is written to files, and where its sources lie."""

import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
from torch import Tensor

from hasten.errors import HastenError

REPOSITORY = Path(__file__).resolve().parents[2]


class Skipped(HastenError):
    """The data of a workload is not on this machine; the message says what and where."""


@dataclass(frozen=True)
class Part:
    """Rows of data: inputs [n, ...] and, where there are any, targets [n, ...]."""

    inputs: tuple[np.ndarray, ...]
    target: np.ndarray | None = None

    def __post_init__(self) -> None:
        if len({len(x) for x in self.inputs}) != 1:
            raise ValueError(f"inputs must have one length, but got {[len(x) for x in self.inputs]}")


@dataclass(frozen=True)
class Material:
    """Trained weights and rows.

    Attributes:
        weights: The network's state dict.
        calibration: Inputs that every tool may calibrate on.
        validation: What a tool may judge itself by; hasten splits it for search and certificate.
        train: For tools that train; None if there is nothing to train on.
        test: What the harness alone judges by; None for networks with random weights.
    """

    weights: dict[str, Tensor]
    calibration: Part
    validation: Part | None = None
    train: Part | None = None
    test: Part | None = None
    notes: tuple[str, ...] = field(default=())


def shared_data(name: str) -> Path:
    """A file of the shared data folder (`$HASTEN_BENCH_DATA`, else `../shared/data` beside the repository).

    Raises:
        Skipped: It is not there.
    """
    folder = Path(os.environ.get("HASTEN_BENCH_DATA", REPOSITORY.parent / "shared" / "data"))
    path = folder / name
    if not path.exists():
        raise Skipped(f"needs {name} in the benchmark data folder (set HASTEN_BENCH_DATA)")
    return path


def example_module(name: str) -> ModuleType:
    """A module of the repository's `examples/`; raises `Skipped` if it, or what it imports, is not there."""
    path = REPOSITORY / "examples" / f"{name}.py"
    if not path.exists():
        raise Skipped(f"needs examples/{name}.py")
    spec = importlib.util.spec_from_file_location(f"hasten_example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise Skipped(f"needs the package {error.name} (pip install 'hasten[examples]')") from error
    return module


def cache() -> Path:
    """Where prepared work is kept: `$HASTEN_BENCH_CACHE`, else `hasten-bench` in the user's cache folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("HASTEN_BENCH_CACHE", home / "hasten-bench")).resolve()
