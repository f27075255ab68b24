"""CONTRIBUTING.md followed to the letter: the files that it asks for become a technique and a target that work."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hasten
from every_technique import check
from hasten.graph.capture import capture
from hasten.recipe import make_target, make_technique, targets, techniques

PAGE = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"<!-- file: src/hasten/(\S+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's files, as if they lay in the packages."""
    names = []
    for path, text in FILES.items():
        package, name = path.removesuffix(".py").split("/")
        (tmp_path / package).mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
        found = importlib.import_module(f"hasten.{package}")
        monkeypatch.setattr(found, "__path__", [*found.__path__, str(tmp_path / package)])
        names.append(f"hasten.{package}.{name}")
    yield
    for name in names:
        sys.modules.pop(name, None)


def test_the_page_shows_one_of_each() -> None:
    assert sorted(path.split("/")[0] for path in FILES) == ["targets", "techniques"]


@pytest.mark.usefixtures("added")
def test_a_technique_is_one_file(digits_task: hasten.Task, tmp_path: Path) -> None:
    assert "clip_weights" in techniques()
    graph = capture(digits_task.model, digits_task.example)
    technique = make_technique("clip_weights", {"deviations": 1.5})
    check(technique, graph, digits_task, tmp_path)
    clipped = hasten.ClipWeights(deviations=1.5).apply(graph, digits_task)
    biggest = [max(float(p.detach().abs().max()) for p in g.parameters() if p.ndim > 1) for g in (graph, clipped)]
    assert biggest[1] < biggest[0]


@pytest.mark.usefixtures("added")
def test_a_target_is_one_file(digits_task: hasten.Task, tmp_path: Path) -> None:
    assert "numpy_interpreter" in targets()
    graph = capture(digits_task.model, digits_task.example)
    target = make_target("numpy_interpreter", {"double": True})
    target.compile(graph, digits_task, tmp_path)
    x = digits_task.example[0]
    found = target.load(tmp_path)(x.numpy())[0]
    np.testing.assert_allclose(found, graph(x).detach().numpy(), atol=1e-4)
