"""`hasten init` writes a task file that runs as it is, for every kind of data."""

import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hasten.errors import InvalidInput
from hasten.task import labelled
from hasten.taskfile import load_task
from hasten.template import KINDS, task_file


def _written(tmp_path: Path, *answers: str) -> str:
    (tmp_path / "mine.py").write_text(task_file("mine.py", *answers))
    return str(tmp_path / "mine.py")


@pytest.mark.parametrize("kind", KINDS)
def test_without_answers_it_runs_on_random_data(kind: str, tmp_path: Path) -> None:
    made = load_task(_written(tmp_path, kind))
    count = 0
    for inputs, target in labelled(made.holdout):
        assert made.model(*inputs).shape == (len(target), 10)
        count += len(target)
    assert count >= 900


def _pictures(folder: Path) -> None:
    for index, name in enumerate(("cats", "dogs")):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (30 + number, 20), (index * 200, 0, 0)).save(folder / name / f"{number}.png")


def _recordings(folder: Path) -> None:
    for index, name in enumerate(("no", "yes")):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            with wave.open(str(folder / name / f"{number}.wav"), "wb") as file:
                file.setparams((1, 2, 16000, 0, "NONE", ""))
                file.writeframes(np.full(100 * (number + 1), 1000 * index, np.int16).tobytes())


def _table(path: Path) -> None:
    rows = [f"{i},{i / 2},{i % 2}" for i in range(6)]
    path.write_text("\n".join(["width,height,class", *rows]) + "\n")


@pytest.mark.parametrize(
    ("kind", "make", "labels"),
    [
        ("images", _pictures, [0, 0, 0, 1, 1, 1]),
        ("audio", _recordings, [0, 0, 0, 1, 1, 1]),
        ("numbers", _table, [0, 1, 0, 1, 0, 1]),
    ],
)
def test_own_data_is_read(kind: str, make: object, labels: list[int], tmp_path: Path) -> None:
    make(tmp_path / "data")  # type: ignore[operator]
    made = load_task(_written(tmp_path, kind, str(tmp_path / "data")))
    found = [label for _, target in labelled(made.holdout) for label in target.tolist()]
    assert found == labels
    assert made.model(*made.example).shape == (6, 10)


def test_own_model_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mynet.py").write_text("import torch\n\ndef make():\n    return torch.nn.Linear(20, 3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    made = load_task(_written(tmp_path, "numbers", "", "mynet:make"))
    assert made.model(*made.example).shape == (16, 3)


def test_every_combination_is_valid_python() -> None:
    for kind in ("images", "text", "audio"):
        for data in ("", 'a "quoted" folder'):
            for model in ("", "my.net:make", "some/pretrained"):
                text = task_file("x.py", kind, data, model)
                compile(text, "x.py", "exec")
                assert ("random" in text) == (not data)


def test_wrong_answers_are_refused() -> None:
    with pytest.raises(InvalidInput, match="Did you mean 'images'"):
        task_file("x.py", "image")
    with pytest.raises(InvalidInput, match="must be `package"):
        task_file("x.py", "numbers", "", "bert")


def test_the_command_writes_what_runs(tmp_path: Path) -> None:
    def hasten(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hasten.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=300)

    assert hasten("init", "mine.py", "--kind", "numbers").returncode == 0
    done = hasten("run", "mine.py", "--targets", "onnxruntime", "--no-training", "--out", "run", "--max-drop", "5%")
    assert done.returncode == 0, done.stderr
    done = hasten("init", "mine.py")
    assert done.returncode == 2
    assert "must not exist yet" in done.stderr
