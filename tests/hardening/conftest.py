"""A target that fails in every way a runtime can, as one more file in the package, in every process."""

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TARGET = '''
import ctypes, time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from hasten.errors import Unsupported
from hasten.recipe import make_target, option

FAULTS = (
    "none", "refuses", "crashes", "hangs", "fills_memory", "fills_disk", "crashes_loaded", "raises_loaded",
    "crashes_again",
)
GRID = ("refuses", "crashes", "crashes_loaded", "raises_loaded", "crashes_again")


@dataclass(frozen=True)
class Faulty:
    """Fails as it is told to; else it is ONNX Runtime."""

    evidence: ClassVar[str] = "timed"
    fault: str = option("none", "what goes wrong", choices=FAULTS, grid=GRID)

    def missing(self):
        return ""

    def compile(self, graph, task, folder):
        if self.fault == "refuses":
            raise Unsupported("faulty refuses this graph.")
        if self.fault == "crashes":
            ctypes.string_at(0)
        if self.fault == "hangs":
            ctypes.PyDLL(None).sleep(3600)  # a native call that never lets Python run again
        if self.fault == "fills_memory":
            bytearray(3 * 2**30)
        if self.fault == "fills_disk":
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        make_target("onnxruntime").compile(graph, task, folder)

    def load(self, folder):
        loaded_before = folder / "loaded"
        if self.fault == "crashes_loaded" or (self.fault == "crashes_again" and loaded_before.exists()):
            ctypes.string_at(0)
        if self.fault == "crashes_again":
            loaded_before.touch()
        program, calls = make_target("onnxruntime").load(folder), []
        if self.fault != "raises_loaded":
            return program

        def half_way(*inputs):
            calls.append(1)
            if len(calls) > 20:
                raise RuntimeError("the device is gone")
            return program(*inputs)

        return half_way
'''
START = "import hasten.targets\nhasten.targets.__path__.append({folder!r})\n"


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the target `faulty` known here and in the processes that are started from here."""
    added = tmp_path / "added"
    (added / "targets").mkdir(parents=True)
    (added / "targets" / "faulty.py").write_text(TARGET)
    # Python runs this module whenever it starts.
    (added / "sitecustomize.py").write_text(START.format(folder=str(added / "targets")))
    targets = importlib.import_module("hasten.targets")
    monkeypatch.setattr(targets, "__path__", [*targets.__path__, str(added / "targets")])
    source = str(Path(targets.__file__ or "").parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(added), source, os.environ.get("PYTHONPATH", "")]))
    yield
    sys.modules.pop("hasten.targets.faulty", None)
