"""The store of graphs: shared work, bounded memory, trained weights kept, steps that make the same weights again."""

from dataclasses import replace
from pathlib import Path

import torch
from torch.fx import GraphModule

import hasten
from hasten.recipe import Recipe, make_target, make_technique
from hasten.search.graphs import GraphStore, key_of

CUT = make_technique("prune_filters", {"ratio": 0.5, "samples": 64})
TRAIN = make_technique("distill", {"epochs": 1, "max_steps": 6})


def _store(task: hasten.Task, folder: Path) -> GraphStore:
    return GraphStore(hasten.capture(task.model, task.example), task, folder)


def _same(a: GraphModule, b: GraphModule) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_trained_weights_are_read_again_and_are_those_of_the_techniques(
    digits_task: hasten.Task, tmp_path: Path
) -> None:
    seconds: dict[str, float] = {}
    graph, steps = _store(digits_task, tmp_path).after((CUT, TRAIN), seconds)
    assert steps == (CUT, TRAIN)
    assert set(seconds) == {"prune_filters", "distill"}
    again: dict[str, float] = {}
    read, _ = _store(digits_task, tmp_path).after((CUT, TRAIN), again)
    assert "distill" not in again
    assert _same(graph, read)
    original = hasten.capture(digits_task.model, digits_task.example)
    assert _same(graph, TRAIN.apply(CUT.apply(original, digits_task), digits_task))


def test_a_training_cut_short_says_where_and_is_made_again_from_that(digits_task: hasten.Task, tmp_path: Path) -> None:
    long = make_technique("distill", {"epochs": 50, "max_steps": 400})
    graph, steps = _store(digits_task, tmp_path / "a").after((long,), {}, limit_s=0.05)
    stopped = steps[0].stop_after  # type: ignore[attr-defined]
    assert 1 <= stopped < 400
    assert steps == (replace(long, stop_after=stopped),)  # type: ignore[type-var]
    assert _same(graph, _store(digits_task, tmp_path / "b").after(steps, {})[0])


def test_memory_holds_a_few_graphs_however_many_were_asked_for(digits_task: hasten.Task, tmp_path: Path) -> None:
    store = _store(digits_task, tmp_path)
    for percent in range(10, 60, 10):
        options = {"ratio": percent / 100, "importance": "weight_l2"}
        store.after((make_technique("prune_filters", options),), {})
    assert len(store._recent) == 2


def test_what_is_pinned_stays_at_hand_until_another_is(digits_task: hasten.Task, tmp_path: Path) -> None:
    store = _store(digits_task, tmp_path)
    cuts = [
        make_technique("prune_filters", {"ratio": r, "importance": "weight_l2", "reconstruct": 0})
        for r in (0.1, 0.2, 0.3, 0.4)
    ]
    best, _ = store.after((cuts[0],), {})
    store.pin((cuts[0],))
    for cut in cuts[1:]:
        store.after((cut,), {})
    assert [store.has((cut,)) for cut in cuts] == [True, False, True, True]
    seconds: dict[str, float] = {}
    assert store.after((cuts[0],), seconds)[0] is best
    assert not seconds
    store.pin((cuts[1],))  # not at hand: the pin stays
    assert store.has((cuts[0],))
    store.pin((cuts[3],))
    assert not store.has((cuts[0],))


def test_a_checkpoint_of_another_training_is_not_taken_up(digits_task: hasten.Task, tmp_path: Path) -> None:
    store = _store(digits_task, tmp_path)
    own = tmp_path / "in_flight"
    own.mkdir(parents=True)
    (own / "owner").write_text(key_of((CUT,)))
    (own / "training.pt").write_bytes(b"of another")
    _, steps = store.after((TRAIN,), {})
    assert steps == (TRAIN,)
    assert not (own / "training.pt").exists()


def test_a_pruned_distilled_quantized_recipe_replays_to_the_same_bytes(
    digits_task: hasten.Task, tmp_path: Path
) -> None:
    """As a search makes it, with a training cut short, and as `hasten apply` makes it from the YAML alone."""
    long = make_technique("distill", {"epochs": 50, "max_steps": 400})
    quantize = make_technique("quantize", {"rounding": "nearest"})
    _, trained = _store(digits_task, tmp_path / "search").after((CUT, long), {}, limit_s=0.05)
    # A new store, as after a resume: what was trained is read from disk.
    graph, steps = _store(digits_task, tmp_path / "search").after((*trained, quantize), {})
    recipe = Recipe(steps, make_target("onnxruntime"))
    (tmp_path / "compiled").mkdir()
    recipe.target.compile(graph, digits_task, tmp_path / "compiled")
    again = hasten.apply(Recipe.from_yaml(recipe.to_yaml()), digits_task, tmp_path / "again.hasten")
    assert (again.path / "model.onnx").read_bytes() == (tmp_path / "compiled" / "model.onnx").read_bytes()
