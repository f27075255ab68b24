"""Run every python block of the pages, each page in an empty folder that holds `examples`.

Blocks fenced as `py` are not run: the old calls in coming-from/. A block behind
`<!--- skip: next if(missing("NAME"), reason="...") -->` runs only where the target is usable, one behind
`if(quick, ...)` only in `make test-all`.
"""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import hasten.taskfile
from hasten.recipe import targets

ROOT = Path(__file__).parent.parent

QUICK: list[bool] = []

# Trained once for all pages.
_load_task = cache(hasten.taskfile.load_task)


def pytest_configure(config: pytest.Config) -> None:
    """Note whether slow tests are left out."""
    QUICK.append("not slow" in config.option.markexpr)


def missing(target: str) -> bool:
    """Whether a target cannot be used here."""
    return bool(targets()[target]().missing())


def setup(namespace: dict[str, Any]) -> None:
    """Enter an empty folder."""
    import torch

    folder = tempfile.TemporaryDirectory()
    (Path(folder.name) / "examples").symlink_to(ROOT / "examples")
    patch = pytest.MonkeyPatch()
    patch.setattr(hasten.taskfile, "load_task", _load_task)
    patch.chdir(folder.name)
    if QUICK[-1]:
        # As in tests/: only `make test-all` starts what `hasten targets install` installs.
        patch.setenv("HASTEN_ENVS", folder.name)
    # Two test processes share two cores.
    torch.set_num_threads(1)
    namespace.update(missing=missing, quick=QUICK[-1], _folder=folder, _patch=patch)


def teardown(namespace: dict[str, Any]) -> None:
    """Leave it."""
    namespace["_patch"].undo()
    namespace["_folder"].cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()], pattern="*.md", setup=setup, teardown=teardown
).pytest()
