"""The phase that trains, end to end on digits: for size, because size does not depend on how busy the machine is."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hasten
from hasten.recipe import Recipe, name_of
from hasten.search import candidates, heat
from hasten.search.journal import Journal
from hasten.task import Budget
from onnx_weights import weights_of


@pytest.fixture(scope="module")
def result(digits_task: hasten.Task, tmp_path_factory: pytest.TempPathFactory) -> Iterator[hasten.Result]:
    with pytest.MonkeyPatch.context() as patch:  # a small field is enough here
        patch.setattr(heat, "_ENTRANTS", (2, 1))
        patch.setattr(candidates, "_MOST_PROBES", 6)
        yield _run(digits_task, tmp_path_factory)


def _run(digits_task: hasten.Task, tmp_path_factory: pytest.TempPathFactory) -> hasten.Result:
    out = tmp_path_factory.mktemp("run") / "digits"
    budget = Budget(max_drop=0.03, objective="size")
    return hasten.run(digits_task, budget, targets=["onnxruntime"], out=out)


def test_a_trained_candidate_beats_post_training(result: hasten.Result) -> None:
    assert result.best is not None
    best = max((f for f in result.finals if f.certificate.passed), key=lambda f: f.trial.merit)
    steps = [name_of(step) for step in best.trial.recipe.steps]
    assert steps[:2] == ["prune_filters", "distill"]
    untrained = [t for t in result.trials[1:] if not any(s.stage.name == "DISTILL" for s in t.recipe.steps)]
    assert best.trial.merit > 1.07 * max(t.merit for t in untrained if t.latency)
    assert result.best.certificate is not None
    assert result.best.certificate["passed"]
    assert "smaller than the original" in result.explanation


def test_only_what_would_win_was_trained_and_the_log_says_so(result: hasten.Result) -> None:
    journal = Journal(result.folder / "journal.jsonl")
    decisions = journal.read("decision")
    trained = [d for d in decisions if d["chosen"] and d["what"].startswith("cut ")]
    assert trained
    assert all(d["predicted_gain"] >= 1.07 and d["predicted_cost_s"] > 0 and d["why"] for d in trained)
    probes = [p for p in journal.read("probe") if "failure" not in p]
    first_trained = next(i for i, e in enumerate(journal.read()) if "distill" in e.get("seconds", {}))
    assert all(journal.read().index(p) < first_trained for p in probes[:4])


def test_the_recipe_replays_to_the_same_program(
    result: hasten.Result, digits_task: hasten.Task, tmp_path: Path
) -> None:
    """Pruned, distilled and quantized: applied from its YAML alone, every weight is the same to the byte."""
    assert result.best is not None
    recipe = Recipe.from_yaml((result.best.path / "recipe.yaml").read_text())
    assert [step.stage.name for step in recipe.steps] == sorted(
        (step.stage.name for step in recipe.steps), key=["PRUNE", "DISTILL", "QUANTIZE"].index
    )
    again = hasten.apply(recipe, digits_task, tmp_path / "again.hasten")
    assert weights_of(again.path / "model.onnx") == weights_of(result.best.path / "model.onnx")


def test_the_time_is_accounted_for(result: hasten.Result) -> None:
    document = json.loads((result.folder / "result.json").read_text())
    seconds = document["seconds"]
    named = {"training", "calibrating", "compiling", "measuring", "setting up", "packing", "report", "finals"}
    assert set(seconds) == named | {"other"}
    assert all(seconds[stage] > 0 for stage in named - {"packing", "report"})  # those need a candidate that passes
    assert sum(seconds.values()) == pytest.approx(document["wall_s"], rel=0.05)
    assert seconds["training"] > 0
    assert all(np.isfinite(list(seconds.values())))


def test_the_run_folder_holds_one_artifact_and_no_checkpoint(result: hasten.Result) -> None:
    assert [path.name for path in result.folder.glob("*.hasten")] == ["best.hasten"]
    assert not (result.folder / "graphs" / "in_flight").exists()
    assert list((result.folder / "graphs").glob("*.safetensors"))


def test_a_resume_of_a_finished_run_gives_the_same_result(result: hasten.Result, digits_task: hasten.Task) -> None:
    before = (result.folder / "journal.jsonl").read_bytes()
    budget = Budget(max_drop=0.03, objective="size")
    again = hasten.run(digits_task, budget, targets=["onnxruntime"], out=result.folder, resume=True)
    assert (result.folder / "journal.jsonl").read_bytes() == before
    assert [t.name for t in again.trials] == [t.name for t in result.trials]
    assert again.explanation == result.explanation
