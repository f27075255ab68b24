"""What every technique promises, as functions; `test_every_technique` holds the folder to it, `test_contributing` a
technique that was just added."""

from pathlib import Path

import torch
from torch.fx import GraphModule

import hasten
from hasten.errors import Unsupported
from hasten.graph.capture import as_tuple, has_dynamic_batch
from hasten.graph.storage import load_graph, save_graph
from hasten.recipe import Recipe, Stage, Technique, make_target

# Training for longer than a test can wait; what is promised does not depend on how long.
QUICK = {"epochs": 1, "samples": 32, "steps": 2}


def state(graph: GraphModule) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in graph.state_dict().items()}


def check(technique: Technique, graph: GraphModule, task: hasten.Task, folder: Path) -> None:
    """Raise unless the technique keeps its promises on `graph`."""
    assert isinstance(technique.stage, Stage)
    assert Recipe.from_yaml(Recipe((technique,), make_target("null")).to_yaml()).steps == (technique,)
    before, code = state(graph), str(graph.graph)
    try:
        changed = technique.apply(graph, task)
    except Unsupported:
        changed = None
    after = state(graph)
    assert str(graph.graph) == code, "the input graph was rewritten"
    assert list(after) == list(before)
    assert all(torch.equal(before[name], after[name]) for name in before), "the input graph's tensors were changed"
    if changed is None:
        return
    assert changed is not graph
    assert not {x.data_ptr() for x in state(changed).values() if x.numel()} & {x.data_ptr() for x in graph.parameters()}
    _check_usable(changed, graph, task, folder)
    again = state(technique.apply(graph, task))
    assert all(torch.equal(value, again[name]) for name, value in state(changed).items()), "not reproducible"


def _check_usable(changed: GraphModule, graph: GraphModule, task: hasten.Task, folder: Path) -> None:
    inputs = tuple(torch.cat([x, x])[:3] for x in task.example) if has_dynamic_batch(graph) else task.example
    with torch.no_grad():
        found, expected = as_tuple(changed(*inputs)), as_tuple(graph(*inputs))
    assert [y.shape for y in found] == [y.shape for y in expected]
    assert all(torch.isfinite(y).all() for y in found)
    save_graph(changed, folder)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(as_tuple(load_graph(folder)(*inputs)), found, strict=True))
