"""The programs that a diagnosis compares: the model as it is, and dry runs of what could be changed.

A dry run is the real technique and the real compiler without what only accuracy needs: ranges come from one sample,
nothing is rounded against data, nothing is trained. Its speed is that of the finished thing, its answers are not.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.diagnosis.child import has_profiler
from hasten.errors import HastenError, reason
from hasten.recipe import Recipe, Target, make_target, make_technique, name_of, options_of, targets

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task

BASELINE = "eager"
PRUNED_SHARE = 0.5
_BLOCK = 16


@dataclass(frozen=True)
class Version:
    """One compiled program.

    Attributes:
        name: What it is called in the diagnosis.
        kind: "now", "runtime", "bf16", "int8", "threads" or "prune": what was changed.
        recipe: How the finished thing is made; a dry run leaves out what does not change its speed.
        precision: What its layers are meant to compute in.
        folder: The compiled files.
        failure: Empty, or why it could not be made.
    """

    name: str
    kind: str
    recipe: Recipe
    precision: str
    folder: Path
    failure: str = ""

    @property
    def target(self) -> Target:
        """What runs it."""
        return self.recipe.target


class Maker:
    """Compiles versions of one captured graph.

    Args:
        graph: The captured graph.
        task: Gives the example and, for ranges, one batch.
        folder: An empty folder for the compiled files.
    """

    def __init__(self, graph: "GraphModule", task: "Task", folder: Path) -> None:
        self._graph, self._task, self._folder = graph, task, folder
        self._made: dict[Any, Version] = {}

    def as_it_is(self) -> list[Version]:
        """The original: eager, then every runtime that can be profiled, in every precision it has."""
        found = [self.make("eager fp32", "now", Recipe((), make_target(BASELINE)), "fp32")]
        for target in profiled_targets():
            found += [
                self.make(f"{name_of(t)} {t_precision}", "runtime" if t_precision == "fp32" else t_precision,
                          Recipe((), t), t_precision)
                for t, t_precision in _precisions(target)
            ]  # fmt: skip
        return found

    def quantized(self) -> list[Version]:
        """int8 for every runtime with integer kernels, its Q/DQ nodes where that runtime wants them."""
        found = []
        for target in profiled_targets():
            for placement in type(target).placements[:1] if hasattr(target, "placements") else ():
                steps = (make_technique("quantize", {"placement": placement}),)
                found += [
                    self.make(f"{name_of(t)} int8" + (", the rest bf16" if rest == "bf16" else ""), "int8",
                              Recipe(steps, t), "int8")
                    for t, rest in _precisions(target)
                ]  # fmt: skip
        return found

    def pruned(self, version: Version) -> Version:
        """Half of the filters, or of the hidden units, of every layer of `version`, in blocks that kernels like."""
        failure = ""
        for name in ("prune_filters", "prune_neurons"):
            options = {"ratio": PRUNED_SHARE, "scope": "layer", "importance": "weight_l2", "round_to": _BLOCK}
            steps = (make_technique(name, options), *version.recipe.steps)
            label = f"{version.name}, half width"
            made = self.make(label, "prune", Recipe(steps, version.target), version.precision)
            if not made.failure:
                return made
            failure = failure or made.failure
        return replace(made, failure=failure)

    def make(self, name: str, kind: str, recipe: Recipe, precision: str) -> Version:
        """Compile a dry run of `recipe`; what cannot be made says why."""
        # Both precisions of a runtime read the same files.
        key = (recipe.steps, name_of(recipe.target))
        folder = self._folder / f"{len(self._made):02d}"
        if key in self._made:
            made = self._made[key]
            return Version(name, kind, recipe, precision, made.folder, failure=made.failure)
        self._made[key] = self._compiled(Version(name, kind, recipe, precision, folder))
        return self._made[key]

    def _compiled(self, version: Version) -> Version:
        recipe, folder = version.recipe, version.folder
        try:
            folder.mkdir()
            graph = self._graph
            for step in recipe.steps:
                graph = _dry(step).apply(graph, self._task)
            self._compile(graph, recipe, folder)
        except Exception as error:  # also a compiler's own: the other versions must outlive it
            return replace(version, failure=reason(error))
        return version

    def _compile(self, graph: "GraphModule", recipe: Recipe, folder: Path) -> None:
        target: Any = recipe.target
        if not hasattr(target, "convert"):
            target.compile(graph, self._task, folder)
            return
        # What its `compile` does, keeping the ONNX file: layers are read from it.
        from hasten.graph.onnx import write_onnx

        readable = target.readable(graph)
        beside = self._made.get((recipe.steps, "onnxruntime"))
        source = (beside.folder if beside and readable is graph else folder) / "model.onnx"
        if not source.is_file():
            write_onnx(readable, self._task.example, source)
        target.convert(source, folder)
        if source.parent != folder:
            (folder / "model.onnx").symlink_to(source)


def of_artifact(target: Target, folder: Path, precision: str, scratch: Path) -> list[Version]:
    """An artifact's own program, and the same program in other runtimes and precisions that can read its file."""
    found = [Version(f"{name_of(target)} {precision} (the artifact)", "now", Recipe((), target), precision, folder)]
    for other in profiled_targets():
        for candidate, lowered in _precisions(other):
            same = name_of(candidate) == name_of(target)
            if same and options_of(candidate) == options_of(target):
                continue
            place = folder if same else scratch / name_of(candidate)
            failure = "" if same or place.exists() else _convert(candidate, folder, place)
            if failure is None:
                continue
            # Quantized layers stay integer; the hint only moves the others.
            meant = "int8" if precision == "int8" else lowered
            kind = "bf16" if lowered == "bf16" else "runtime"
            found.append(Version(f"{name_of(candidate)} {lowered}", kind, Recipe((), candidate), meant, place, failure))
    return found


def _convert(target: Target, source: Path, place: Path) -> str | None:
    """Why an artifact's file cannot be read by `target`; empty if it could, None if there is no way to try."""
    convert: Callable[..., None] | None = getattr(target, "convert", None)
    if convert is None or not (source / "model.onnx").is_file():
        return None
    place.mkdir()
    try:
        convert(source / "model.onnx", place)
    except Exception as error:  # a converter's own, of an operator that it does not know
        shutil.rmtree(place)
        return reason(error)
    return ""


def single_threaded(version: Version) -> Version:
    """The same program with one thread."""
    target = make_target(name_of(version.target), options_of(version.target) | {"threads": 1})
    recipe = Recipe(version.recipe.steps, target)
    return replace(version, name=f"{version.name}, 1 thread", kind="threads", recipe=recipe)


def profiled_targets() -> Iterator[Target]:
    """Every usable target, beside eager, whose nodes can be timed."""
    for name, part in targets().items():
        target = part()
        if name != BASELINE and part.evidence == "timed" and has_profiler(target) and not target.missing():
            yield target


def _precisions(target: Target) -> list[tuple[Target, str]]:
    """The target in every precision that it has and that works here."""
    found = [(target, "fp32")]
    if "precision" in options_of(target):
        try:
            lower = make_target(name_of(target), options_of(target) | {"precision": "bf16"})
        except HastenError:
            return found
        if not lower.missing():
            found.append((lower, "bf16"))
    return found


def _dry(step: Any) -> Any:
    """The step without what only accuracy needs."""
    given = options_of(step)
    cheap = {"rounding": "nearest", "bias_correction": False, "samples": 1, "reconstruct": 0, "epochs": 0}
    return make_technique(name_of(step), given | {key: value for key, value in cheap.items() if key in given})


def batch_of(example: Any, fixed: bool) -> list[np.ndarray]:
    """The example as numpy arrays: its first row, or all of it where the batch is fixed."""
    return [np.ascontiguousarray(x.detach().cpu().numpy()[: None if fixed else 1]) for x in example]
