"""The measuring side of a run: the original in its process, and every candidate judged beside it."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch.fx import GraphModule

from hasten.errors import HastenError
from hasten.graph.capture import has_dynamic_batch, placeholders
from hasten.graph.fuse import fuse
from hasten.measure.accuracy import outputs_of, reference_targets, scores
from hasten.measure.holdout import Holdout
from hasten.measure.latency import compare
from hasten.measure.worker import Worker
from hasten.recipe import Recipe, make_target
from hasten.search.space import BASELINE
from hasten.search.trial import Trial
from hasten.task import Task

_QUICK_TURNS = 5
_EVALUATION_BATCH = 8


@dataclass(frozen=True)
class Sizes:
    """Batch sizes to run at: a graph with a fixed batch runs at that one only."""

    fixed: int | None
    latency: int
    evaluation: int
    largest: int


class Bench:
    """The original model compiled for the baseline target, running; candidates are measured against it.

    Args:
        task: The user's task; its `holdout` is not read here.
        graph: The captured original, of `task.inner`.
        holdout: The stored holdout.
        folder: Where trials are compiled, one sub-folder each.
    """

    def __init__(self, task: Task, graph: GraphModule, holdout: Holdout, folder: Path) -> None:
        self.holdout = holdout
        self._folder = folder
        fixed = None if has_dynamic_batch(graph) else len(task.example[0])
        self.sizes = Sizes(fixed, fixed or 1, fixed or _EVALUATION_BATCH, fixed or 64)
        # What techniques see: the certifying part never reaches them.
        self.task = replace(task, holdout=holdout.batches(holdout.search, self.sizes.evaluation))
        self._graphs: dict[tuple[Any, ...], GraphModule] = {(): graph}
        self.recipe = Recipe((), make_target(BASELINE))
        started = time.perf_counter()
        self._compile(0, self.recipe)
        self.baseline = self.worker(0, self.recipe)
        self.unlabelled = holdout.targets is None
        try:
            self.baseline_scores = self._original_scores()
        except BaseException:
            self.baseline.close()
            raise
        self._seconds = {"original": time.perf_counter() - started}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the original's process."""
        self.baseline.close()

    def original(self) -> Trial:
        """The original as trial 0."""
        inputs = self.holdout.inputs
        latency = compare({"original": self.baseline}, "original", inputs, batch=self.sizes.latency, turns=_QUICK_TURNS)
        return Trial(
            0,
            self.recipe,
            latency=latency["original"],
            score=float(self.baseline_scores[self.holdout.search].mean()),
            drop=0.0,
            changed=0.0,
            size_bytes=folder_bytes(self.folder(0)),
            peak_memory_bytes=self.baseline.peak_memory_bytes(),
            seconds=self._seconds,
        )

    def try_recipe(self, number: int, recipe: Recipe) -> Trial:
        """Apply, compile, time and score a recipe; a failure is a result, not an exception."""
        seconds: dict[str, float] = {}
        trial = Trial(number, recipe, seconds=seconds)
        try:
            with _clock(seconds, "compile"):
                self._compile(number, recipe)
            with _clock(seconds, "load"):
                worker = self.worker(number, recipe)
            with worker:
                with _clock(seconds, "latency"):
                    pair = {"original": self.baseline, "candidate": worker}
                    latency = compare(
                        pair, "original", self.holdout.inputs, batch=self.sizes.latency, turns=_QUICK_TURNS
                    )["candidate"]
                with _clock(seconds, "accuracy"):
                    found = self.score(number, worker, self.holdout.search)
                memory = worker.peak_memory_bytes()
        except HastenError as error:
            return replace(trial, failure=str(error))
        except Exception as error:
            # A runtime's own exception while compiling: the search must outlive it, and the report must show it.
            return replace(
                trial, failure=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
            )
        reference = self.baseline_scores[self.holdout.search]
        return replace(
            trial,
            latency=latency,
            score=float(found.mean()),
            drop=float(reference.mean() - found.mean()),
            changed=float(np.mean(found != reference)),
            size_bytes=folder_bytes(self.folder(number)),
            peak_memory_bytes=memory,
        )

    def folder(self, number: int) -> Path:
        """What the target compiled for a trial."""
        return self._folder / f"{number:04d}" / "compiled"

    def worker(self, number: int, recipe: Recipe) -> Worker:
        """A new process running a trial's program."""
        return Worker(recipe.target, self.folder(number), self.folder(number).parent / "log.txt")

    def score(self, number: int, worker: Worker, rows: np.ndarray) -> np.ndarray:
        """Per-sample scores of a trial's program on `rows` of the holdout."""
        folder = self.folder(number).parent / "outputs"
        files = outputs_of(worker, self.holdout, rows, folder, self.sizes.evaluation)
        return scores(self.task, files, self._targets(rows))

    def _original_scores(self) -> np.ndarray:
        rows = np.arange(len(self.holdout))
        files = outputs_of(self.baseline, self.holdout, rows, self.folder(0).parent / "outputs", self.sizes.evaluation)
        if self.unlabelled:
            self.holdout = replace(self.holdout, targets=reference_targets(files))
        return scores(self.task, files, self._targets(rows))

    def _targets(self, rows: np.ndarray) -> Any:
        return self.holdout.targets_of(rows)

    def _compile(self, number: int, recipe: Recipe) -> None:
        folder = self.folder(number)
        folder.mkdir(parents=True)
        fused = fuse(self.graph(recipe), self.task)
        self.input_names = [node.name for node in placeholders(fused)]
        recipe.target.compile(fused, self.task, folder)

    def graph(self, recipe: Recipe) -> GraphModule:
        """The graph after the recipe's steps; recipes that share steps share the work."""
        if recipe.steps not in self._graphs:
            shorter = Recipe(recipe.steps[:-1], recipe.target)
            self._graphs[recipe.steps] = recipe.steps[-1].apply(self.graph(shorter), self.task.inner)
        return self._graphs[recipe.steps]


class _clock:  # noqa: N801  (a context manager, used like a function)
    def __init__(self, seconds: dict[str, float], stage: str) -> None:
        self._seconds, self._stage = seconds, stage

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._stage] = time.perf_counter() - self._start


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
