"""Compile a graph by hand: `hasten.compile`, and `hasten.apply` for a whole recipe."""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.fx import GraphModule

from hasten import artifact
from hasten.artifact import Artifact
from hasten.errors import InvalidInput
from hasten.graph.capture import capture, has_dynamic_batch, placeholders
from hasten.graph.fuse import fuse
from hasten.quantization.dynamic import check_dynamic
from hasten.quantization.fp8 import check_fp8
from hasten.quantization.saturation import warn_of_saturation
from hasten.recipe import Recipe, Target, Technique, describe, make_target, name_of
from hasten.task import Task


def compile(
    graph: GraphModule,
    task: Task,
    target: str | Target = "onnxruntime",
    out: str | os.PathLike[str] = "model.hasten",
    *,
    options: Mapping[str, Any] | None = None,
    steps: tuple[Technique, ...] = (),
) -> Artifact:
    """Compile a captured graph for a target and pack it as an artifact, without a certificate.

    `task.preprocess` and `task.postprocess` are fused into the graph; capture it from `task.inner` then.

    Args:
        graph: From `hasten.capture`, as it is or changed by techniques.
        task: The task whose example becomes the artifact's check.
        target: A target, or its name.
        out: The folder to make; must not exist.
        options: Options of the target when it is given by name.
        steps: The techniques that made `graph`, for `recipe.yaml`.

    Raises:
        InvalidInput: Unknown or unusable target, or `out` exists.
        Unsupported: The target cannot run this graph.
    """
    chosen = make_target(target, options) if isinstance(target, str) else target
    _check_possible(chosen, Path(out))
    if getattr(chosen, "runs_on_cpu", False):
        warn_of_saturation(graph)
    check_dynamic(graph, chosen)
    check_fp8(graph, chosen)
    graph = fuse(graph, task)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "compiled"
        folder.mkdir()
        chosen.compile(graph, task, folder)
        arrays = [x.detach().cpu().numpy() for x in task.example]
        outputs = chosen.load(folder)(*arrays)
        fixed = None if has_dynamic_batch(graph) else len(arrays[0])
        names = [node.name for node in placeholders(graph)]
        specs = input_specs(names, arrays, fixed)
        return artifact.write(Path(out), folder, Recipe(steps, chosen), specs, arrays, outputs)


def apply(
    recipe: Recipe,
    task: Task,
    out: str | os.PathLike[str] = "model.hasten",
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Artifact:
    """Replay a recipe on a task: capture, apply every step, compile.

    Args:
        recipe: The steps and the target.
        task: What to apply them to.
        out: The folder to make; must not exist.
        say: Told what is being done.

    Raises:
        InvalidInput: The task or the target breaks a rule, or `out` exists.
        Unsupported: A step or the target cannot handle this model.
    """
    # Steps may train for long.
    _check_possible(recipe.target, Path(out))
    inner = task.inner
    say("capturing the model")
    graph = capture(inner.model, inner.example)
    for number, step in enumerate(recipe.steps, 1):
        say(f"step {number} of {len(recipe.steps)}: {describe(step)}")
        graph = step.apply(graph, inner)
    say(f"compiling for {name_of(recipe.target)}")
    return compile(graph, task, recipe.target, out, steps=recipe.steps)


def _check_possible(target: Target, out: Path) -> None:
    if missing := target.missing():
        raise InvalidInput(f"target {name_of(target)} must be usable on this machine, but needs: {missing}")
    artifact.check_free(out)


def input_specs(names: list[str], arrays: list[np.ndarray], fixed: int | None) -> list[dict[str, Any]]:
    """Name, dtype and shape of every input; the batch is `fixed`, or None for any size."""
    return [
        {"name": name, "dtype": str(x.dtype), "shape": [fixed, *x.shape[1:]]}
        for name, x in zip(names, arrays, strict=True)
    ]
