"""What is chosen when a program is loaded: timed without compiling again, and what ships is what was timed."""

import inspect
from pathlib import Path
from typing import Any

import pytest

import hasten
from hasten.engine.runner import open_artifact
from hasten.graph.capture import capture
from hasten.measure.holdout import store_holdout
from hasten.recipe import Recipe, Target, describe, make_target, make_technique, targets
from hasten.search import loading
from hasten.search.bench import Bench
from hasten.search.compiler import Compiler
from hasten.task import Budget

ALL, ONE = make_target("onnxruntime"), make_target("onnxruntime", {"threads": 1})


def test_a_program_is_loaded_as_it_is_and_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "usable_cores", lambda: 2)
    assert loading.ways(ALL) == [ALL, ONE]
    assert loading.ways(ONE) == [ONE, ALL]
    assert loading.ways(make_target("null")) == [make_target("null")]


def test_all_threads_of_one_core_are_one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "usable_cores", lambda: 1)
    assert loading.ways(ALL) == [ALL]


def test_only_what_is_clearly_faster_takes_the_first_place() -> None:
    assert loading.fastest({ALL: 5.0, ONE: 5.1}) == ALL
    assert loading.fastest({ALL: 5.0, ONE: 7.5}) == ONE
    assert loading.fastest({ONE: 5.0, ALL: 5.1}) == ONE


def test_what_compiling_does_not_read_shares_what_was_compiled() -> None:
    def key(name: str, **options: Any) -> Any:
        return loading.compiled_as(Recipe((), make_target(name, options)))

    assert key("openvino", precision="fp32") == key("openvino", precision="bf16", threads=1)
    assert key("litert", precision="fp32") != key("litert", precision="int8")
    assert key("openvino") != key("onnxruntime")
    rounded = Recipe((make_technique("quantize"),), ALL)
    assert loading.compiled_as(rounded) != key("onnxruntime")


@pytest.mark.parametrize("part", targets().values(), ids=list(targets()))
def test_compiling_reads_nothing_that_is_said_to_be_of_loading(part: type[Target]) -> None:
    source = inspect.getsource(part.compile)
    for field in part.__dataclass_fields__.values():  # type: ignore[attr-defined]
        if field.metadata.get("at_load"):
            assert f"self.{field.name}" not in source
        else:
            assert not field.metadata.get("timed"), "another value would have to be compiled"


def test_two_ways_to_load_are_compiled_once(
    digits_task: hasten.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Target] = []
    compile = Compiler.compile

    def counted(self: Compiler, target: Target, *rest: Any) -> None:
        compiled.append(target)
        compile(self, target, *rest)

    monkeypatch.setattr(Compiler, "compile", counted)
    holdout = store_holdout(digits_task, tmp_path / "data", 0)
    with Bench(digits_task, capture(digits_task.model, digits_task.example), holdout, tmp_path / "trials") as bench:
        compiled.clear()
        first, second = (bench.try_recipe(n, Recipe((), target)) for n, target in ((1, ALL), (2, ONE)))
        assert compiled == [ALL]
        assert first.score == second.score
        assert (bench.folder(2) / "model.onnx").read_bytes() == (bench.folder(1) / "model.onnx").read_bytes()


def test_what_was_timed_fastest_is_certified_shipped_and_served(
    digits_task: hasten.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "usable_cores", lambda: 2)
    # Whichever is faster here: one thread wins.
    monkeypatch.setattr("hasten.search.bench.fastest", lambda ratios: min(ratios, key=lambda way: way.threads or 99))
    budget = Budget(max_drop=0.02, training=False)
    result = hasten.run(digits_task, budget, targets=["onnxruntime"], out=tmp_path / "run")
    assert result.best is not None
    for trial in result.trials[1:]:
        assert trial.recipe.target == ONE
        assert set(trial.loaded) == {"onnxruntime", "onnxruntime(threads=1)"}
    assert result.best.manifest["target"]["options"]["threads"] == 1
    assert result.best.certificate is not None
    assert result.best.certificate["program"] == describe(ONE)
    assert "threads: 1" in (result.best.path / "recipe.yaml").read_text()
    runner = open_artifact(result.best.path, replicas=1)
    assert "1 x 1 threads" in runner.name
    runner.close()
