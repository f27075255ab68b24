"""What the machine does to a search: a disk that fills up, folders that cannot be written, a clock that jumps."""

import ctypes
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import hasten
from hasten.artifact import Artifact, verify
from hasten.search import journal
from hasten.search.journal import Journal
from hasten.task import Budget

QUICK = Budget(max_drop=0.02, training=False)
_DROP_FROM_BOUNDING_SET, _OVERRIDE_PERMISSIONS, _READ_ALL = 24, 1, 2


@pytest.mark.parametrize("full_after", [1, 4])
def test_a_disk_that_fills_up_ends_the_search_and_a_resume_goes_on(
    digits_task: hasten.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_after: int
) -> None:
    written: list[bytes] = []
    append = journal._append

    def until_full(path: Path, data: bytes) -> None:
        if len(written) == full_after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(path, data)
        written.append(data)

    out = tmp_path / "run"
    with monkeypatch.context() as full:
        full.setattr(journal, "_append", until_full)
        with pytest.raises(OSError, match="No space left"):
            hasten.run(digits_task, QUICK, targets="onnxruntime", out=out)
    before = Journal(out / "journal.jsonl").read()
    assert len(before) == full_after
    assert not list(out.glob("best.hasten")) or verify(out / "best.hasten")
    result = hasten.run(digits_task, QUICK, targets="onnxruntime", out=out, resume=True)
    assert Journal(out / "journal.jsonl").read()[:full_after] == before
    assert result.best is not None
    assert verify(out / "best.hasten").deviation < 0.01


def test_a_clock_that_jumps_changes_nothing(
    digits_task: hasten.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Summer time, a correction over the network, a machine that woke up: deadlines follow the monotonic clock."""
    jumps = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: float((-1) ** next(jumps) * 1e9))
    result = hasten.run(
        digits_task, Budget(max_drop=0.02, training=False, minutes=30), targets="onnxruntime", out=tmp_path / "run"
    )
    assert result.best is not None
    elapsed = [e["elapsed_s"] for e in Journal(tmp_path / "run" / "journal.jsonl").read()]
    assert elapsed == sorted(elapsed)
    assert elapsed[-1] < 1e6


def _without_rights() -> None:
    """Let a child of root be refused like any other user."""
    libc = ctypes.CDLL(None)
    for right in (_OVERRIDE_PERMISSIONS, _READ_ALL):
        libc.prctl(_DROP_FROM_BOUNDING_SET, right, 0, 0, 0)


def _ordinary(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        preexec_fn=_without_rights if os.geteuid() == 0 else None,
        capture_output=True,
        text=True,
        check=False,
    )


SAVE = """
import sys
from pathlib import Path
from hasten.artifact import Artifact, load
from hasten.errors import InvalidInput
import numpy as np
print(load(sys.argv[1])(np.zeros((1, 4), "float32"))[0].shape)
try:
    Artifact(Path(sys.argv[1])).save(sys.argv[2])
except InvalidInput as error:
    print(error)
"""
OPEN = """
import sys
from pathlib import Path
from hasten.errors import InvalidInput
from hasten.search.folder import opened
try:
    with opened(Path(sys.argv[1]), False):
        print("opened")
except InvalidInput as error:
    print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="drops the rights of root by a call of Linux")
def test_read_only_folders_are_read_and_not_written(artifact: Path, tmp_path: Path) -> None:
    copy = Artifact(artifact).save(tmp_path / "shut" / "copy.hasten").path
    for path in (*copy.iterdir(), copy, copy.parent):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        found = _ordinary(SAVE, str(copy), str(copy.parent / "other.hasten"))
        shape, said = found.stdout.splitlines()
        assert shape == "(1, 3)"
        assert said.startswith(f"{copy.parent} must be a writable folder, but: [Errno 13]")
        found = _ordinary(OPEN, str(copy.parent / "run"))
        assert "`out` must be a writable folder" in found.stdout
        assert sorted(path.name for path in copy.parent.iterdir()) == ["copy.hasten"]
        copy.chmod(0o000)
        found = _ordinary("import sys, hasten; hasten.load(sys.argv[1])", str(copy))
        assert "InvalidInput" in found.stderr.splitlines()[-1]
        assert "Permission denied" in found.stderr
    finally:
        for path in (copy.parent, copy):
            path.chmod(0o755)


MAKE = """
import sys
import numpy as np, torch
import hasten
sys.path.insert(0, sys.argv[1])
import digits
task = digits.task()
recipe = hasten.Recipe.from_yaml(sys.argv[2])
graph = hasten.capture(task.model, task.example)
for step in recipe.steps:
    graph = step.apply(graph, task)
hasten.compile(graph, task, "onnxruntime", sys.argv[3])
"""
RECIPE = """
steps:
- prune_filters: {ratio: 0.5}
- distill: {epochs: 1}
- quantize: {placement: fuse_clamps}
target: onnxruntime
"""


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    examples = str(Path(__file__).parents[2] / "examples")
    for name in ("a", "b"):
        subprocess.run([sys.executable, "-c", MAKE, examples, RECIPE, str(tmp_path / name)], check=True)
    files = [json.loads((tmp_path / name / "manifest.json").read_text())["files"] for name in ("a", "b")]
    assert files[0] == files[1]
    np.testing.assert_array_equal(*(np.load(tmp_path / name / "check_output_0.npy") for name in ("a", "b")))
