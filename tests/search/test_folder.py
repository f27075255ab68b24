"""The run folder: one search at a time, and a resume only with what the run began with."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import hasten
from hasten.errors import InvalidInput
from hasten.measure.holdout import store_holdout
from hasten.search.folder import check_same, identity, opened
from hasten.search.journal import Journal

BEGUN: dict[str, Any] = {
    "task": {"model": "m", "holdout": "h"},
    "device": {"cpu": "c", "cores": 2, "memory": 1},
    "budget": {"max_drop": 0.01, "minutes": None},
    "seed": 0,
    "targets": ["onnxruntime"],
}


def test_a_second_search_in_one_folder_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    out = tmp_path / "run"
    code = "import sys; from hasten.search.folder import opened; from pathlib import Path\n"
    code += "with opened(Path(sys.argv[1]), False): print('held', flush=True); sys.stdin.read()"
    first = subprocess.Popen([sys.executable, "-c", code, str(out)], stdin=-1, stdout=-1, text=True)
    assert first.stdin is not None
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    with pytest.raises(InvalidInput, match=f"process {first.pid} is searching"), opened(out, False):
        pass
    first.kill()
    first.wait()
    first.stdin.close()
    first.stdout.close()
    with opened(out, False) as folder:
        assert (folder / ".lock").read_text() == str(os.getpid())


def test_a_run_is_taken_up_only_when_asked_to(tmp_path: Path) -> None:
    Journal(tmp_path / "journal.jsonl").append("begin", {})
    with pytest.raises(InvalidInput, match="--resume"), opened(tmp_path, False):
        pass
    with opened(tmp_path, True) as folder:
        assert folder == tmp_path.resolve()


def test_a_run_that_was_refused_before_it_began_is_not_in_the_way(tmp_path: Path) -> None:
    """For a task that could not be loaded, say: the same command with a mended task begins anew."""
    (tmp_path / "journal.jsonl").touch()
    with opened(tmp_path, False) as folder:
        assert folder == tmp_path.resolve()


def test_resume_in_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InvalidInput, match="new or empty"), opened(tmp_path, True):
        pass


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("task", "model"), "other", "`task.model`"),
        (("budget", "max_drop"), 0.02, "`max_drop` must be what the run to resume began with, 0.01, but is 0.02"),
        (("seed",), 1, "`seed`"),
        (("targets",), ["openvino"], "`targets`"),
        (("device", "cpu"), "other", "`device`"),
    ],
)
def test_a_changed_start_is_refused_by_name(path: tuple[str, ...], value: object, message: str) -> None:
    now = copy.deepcopy(BEGUN)
    check_same(BEGUN, now)
    inner = now
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(InvalidInput, match=message):
        check_same(BEGUN, now)


def test_a_loader_that_shuffles_is_the_same_loader_when_a_run_is_resumed(
    digits_task: hasten.Task, tmp_path: Path
) -> None:
    graph = hasten.capture(digits_task.model, digits_task.example)
    holdout = store_holdout(digits_task, tmp_path / "data", 0)
    data = torch.utils.data.TensorDataset(torch.arange(1000))

    def found(seed: int = 0) -> dict[str, str]:
        return identity(graph, holdout, {"train": torch.utils.data.DataLoader(data, 10, shuffle=True)}, seed)

    first, state = found(), torch.get_rng_state()
    torch.rand(7)
    assert found() == first
    assert found(1) != first
    torch.set_rng_state(state)
