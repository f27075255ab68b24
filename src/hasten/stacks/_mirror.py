"""A stack that needs nothing and gives back what it gets: for testing the border itself."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hasten.errors import InvalidInput


def prepare() -> None:
    """Leave a file where the test asks for one."""
    if path := os.environ.get("HASTEN_MIRROR_PREPARED"):
        Path(path).touch()


def double(value: int) -> int:
    """Twice `value`, which must not be negative."""
    if value < 0:
        raise InvalidInput(f"`value` must be at least 0, but got {value}: too small.")
    return 2 * value


def first_path() -> str:
    """Where this process looks for packages first."""
    return sys.path[0]


def die(words: str) -> None:
    """End without an answer."""
    print(words, flush=True)
    os._exit(3)


def load(folder: Path) -> Callable[..., tuple[Any, ...]]:
    """A program that answers its inputs."""
    return lambda *inputs: inputs
