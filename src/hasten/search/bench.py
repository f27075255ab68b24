"""The measuring side of a run: the original in its process, and every candidate judged beside it."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch.fx import GraphModule

from hasten.errors import reason
from hasten.graph.capture import has_dynamic_batch, placeholders
from hasten.graph.fuse import fuse
from hasten.measure.accuracy import outputs_of, reference_targets, scores
from hasten.measure.arrays import ArrayFile
from hasten.measure.certificate import is_binary
from hasten.measure.energy import EnergyCounter, compare_energy
from hasten.measure.holdout import Holdout
from hasten.measure.latency import Latency, best_throughput, compare
from hasten.measure.worker import ProgramFailed, Worker
from hasten.recipe import Recipe, Target, describe, make_target
from hasten.search.compiler import COMPILE_SECONDS, Compiler
from hasten.search.graphs import GraphStore
from hasten.search.limits import stated
from hasten.search.loading import compiled_as, fastest, ways
from hasten.search.pacemaker import Pacemaker
from hasten.search.space import BASELINE
from hasten.search.trial import Trial, merit_of
from hasten.task import Task

_QUICK_TURNS = 5
# Beside the pacemaker: training is bet on these.
_PACED_TURNS = 9
# An interval wider than this is a disturbed measurement, and is made again for longer.
_WIDE, _MORE_TURNS = 1.2, 13
# Where a known program has become this much slower against the original, a neighbour takes a core.
_DISTURBED = 1.1
_PACEMAKER = "pacemaker"
# Large enough to share what a call costs. Values of larger batches of images no longer fit the allocator's heap: eager
# PyTorch then takes fresh pages in every call.
_EVALUATION_BATCH = 4
# Scoring takes a multiple of the whole search part; what is this slow does not win.
_HOPELESS = 0.4


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
        folder: Where trials are compiled, one sub-folder each; what an earlier session left of the original is used.
        objective: What `Trial.merit` stands for.
        compile_limit_s: Longest time for one compilation.
        own: Ending of the names of scratch folders, where several processes work in one run folder.
        limits: Of what is judged. Candidates are then not timed, and their merit is the room under the limits.

    Raises:
        InvalidInput: The objective cannot be measured here.
    """

    def __init__(
        self,
        task: Task,
        graph: GraphModule,
        holdout: Holdout,
        folder: Path,
        objective: str = "latency",
        compile_limit_s: float = COMPILE_SECONDS,
        own: str = "",
        limits: Mapping[str, float] | None = None,
    ) -> None:
        self.holdout = holdout
        self._folder = folder
        self.objective = objective
        self.limits = dict(limits or {})
        self.pacemaker: Pacemaker | None = None
        self._compiled: dict[tuple[Any, ...], Path] = {}
        self._counter = EnergyCounter() if objective == "energy" else None
        fixed = None if has_dynamic_batch(graph) else len(task.example[0])
        self.sizes = Sizes(fixed, fixed or 1, fixed or _EVALUATION_BATCH, fixed or 64)
        # What techniques see: the certifying part never reaches them.
        self.task = replace(task, holdout=holdout.batches(holdout.search, self.sizes.evaluation))
        self.inner = self.task.inner
        self.graphs = GraphStore(graph, self.inner, folder.parent / "graphs", f"in_flight{own}")
        self.input_names = [node.name for node in placeholders(fuse(graph, self.task))]
        self.recipe = Recipe((), make_target(BASELINE))
        started = time.perf_counter()
        done = self.folder(0).parent / "outputs.json"
        self._given = holdout
        with ExitStack() as children:
            self._compiler = children.enter_context(Compiler(folder.parent / f"compiler{own}", compile_limit_s))
            if not done.exists():
                shutil.rmtree(self.folder(0).parent, ignore_errors=True)
                self._compile(0, self.recipe, {})
            self.baseline = self.worker(0, self.recipe)
            children.callback(lambda: self.baseline.close())
            children.callback(lambda: self.pace_by(None))
            self.baseline_search, self.baseline_certify = self._original_scores(done)
            self._children = children.pop_all()
        self._seconds = {"original": time.perf_counter() - started}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes of the original, the pacemaker and the compiler."""
        self._children.close()

    @property
    def unlabelled(self) -> bool:
        """Whether the task came without labels, so that the original's answers stand for them."""
        return self._given.targets is None

    @property
    def content_sha256(self) -> str:
        """Of the holdout as the task gave it; see `Holdout.content_sha256`."""
        return self._given.content_sha256

    @property
    def right_or_wrong(self) -> bool:
        """Whether the score of a sample is 0 or 1. The original's alone does not tell where it is judged by itself."""
        judged = self.task.score is None and self.task.metric is None
        scores = (self.baseline_search, self.baseline_certify)
        return (judged or not self.unlabelled) and all(map(is_binary, scores))

    def revive(self) -> None:
        """Start the original again if its process has ended, as the system does to it when memory runs out."""
        if not self.baseline.runs:
            self.baseline.close()
            self.baseline = self.worker(0, self.recipe)

    def pace_by(self, trial: Trial | None) -> None:
        """Time later candidates against this trial's program; None: against the original."""
        if self.pacemaker is not None:
            self.pacemaker.close()
        self.pacemaker = None if trial is None else Pacemaker(trial, lambda t: self.worker(t.number, t.recipe))

    def original(self) -> Trial:
        """The original as trial 0."""
        latency = self.compare({"original": self.baseline}, "original", _QUICK_TURNS)
        return Trial(
            0,
            self.recipe,
            latency=latency["original"],
            gain=1.0,
            score=float(self.baseline_search.mean()),
            drop=0.0,
            changed=0.0,
            noise=0.0,
            size_bytes=folder_bytes(self.folder(0)),
            peak_memory_bytes=self.baseline.peak_memory_bytes(),
            seconds=self._seconds,
        )

    def original_on_record(self) -> dict[str, Any]:
        """The original as trial 0, as plain values."""
        return self.original().to_json()

    def try_recipe(self, number: int, recipe: Recipe, limit_s: float | None = None) -> Trial:
        """Apply, compile, time (or judge) and score a recipe; a failure is a result, not an exception.

        Args:
            number: Of the trial.
            recipe: What to try.
            limit_s: Longest time for its last training; the trial's recipe says where it stopped.
        """
        seconds: dict[str, float] = {}
        trial = Trial(number, recipe, seconds=seconds)
        shutil.rmtree(self.folder(number).parent, ignore_errors=True)
        try:
            self.revive()
            recipe = self._compile(number, recipe, seconds, limit_s)
            trial = replace(trial, recipe=recipe)
            values: dict[str, float] = {}
            loaded: dict[str, float] = {}
            with ExitStack() as programs:
                with clock(seconds, "load"):
                    workers = self._load(programs, number, recipe)
                if self.limits:
                    latency, worker = None, workers[recipe.target]
                    values, gain = stated(recipe.target, self.folder(number), self.limits)
                else:
                    with clock(seconds, "latency"):
                        target, latency, gain, loaded = self._measure(workers, folder_bytes(self.folder(number)))
                    worker, recipe = workers[target], replace(recipe, target=target)
                    trial = replace(trial, recipe=recipe, loaded=loaded)
                    merit = merit_of(latency, gain)
                    if merit < _HOPELESS:
                        return replace(trial, failure=f"{merit:.2f} times as good as the original: not worth scoring.")
                with clock(seconds, "accuracy"):
                    found = self.score(number, worker, self.holdout.search)
                memory = worker.peak_memory_bytes()
                ending = time.perf_counter()
            seconds["unload"] = time.perf_counter() - ending
        except Exception as error:
            # Also a runtime's own exception: the search must outlive it, and the report must show it.
            return replace(trial, failure=reason(error))
        reference = self.baseline_search
        return replace(
            trial,
            latency=latency,
            judged=values,
            gain=gain,
            score=float(found.mean()),
            drop=float(reference.mean() - found.mean()),
            changed=float(np.mean(found != reference)),
            # Of a metric a score stands for several samples, and varies as much less.
            noise=float(np.mean(np.square(found - reference))) * len(self.holdout.search) / len(found),
            size_bytes=folder_bytes(self.folder(number)),
            peak_memory_bytes=memory,
        )

    def probe(self, graph: GraphModule, recipe: Recipe) -> tuple[float, dict[str, float]]:
        """The merit of a graph on the recipe's target (see `Trial.merit`), whatever it answers; and the seconds it
        took. Nothing is kept.
        """
        seconds: dict[str, float] = {}
        folder = self._folder.parent / "probe"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "compiled").mkdir(parents=True)
        try:
            self.revive()
            with clock(seconds, "compile"):
                self._compiler.compile(recipe.target, fuse(graph, self.task), self.task, folder / "compiled")
            if self.limits:
                return stated(recipe.target, folder / "compiled", self.limits)[1], seconds
            if self.objective == "size":
                return folder_bytes(self.folder(0)) / folder_bytes(folder / "compiled"), seconds
            with clock(seconds, "latency"), Worker(recipe.target, folder / "compiled", folder / "log.txt") as worker:
                _, latency, gain, _ = self._measure({recipe.target: worker}, folder_bytes(folder / "compiled"))
            return merit_of(latency, gain), seconds
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _load(self, programs: ExitStack, number: int, recipe: Recipe) -> dict[Target, Worker]:
        """A trial's program in every way that is worth timing, its own first."""
        workers = {recipe.target: programs.enter_context(self.worker(number, recipe))}
        if self.objective == "latency" and not self.limits:
            for way in ways(recipe.target)[1:]:
                with suppress(ProgramFailed):  # the program as it was asked for runs
                    workers[way] = programs.enter_context(self.worker(number, replace(recipe, target=way)))
        return workers

    def _measure(
        self, workers: Mapping[Target, Worker], size_bytes: int
    ) -> tuple[Target, Latency, float, dict[str, float]]:
        """The fastest of several ways to load a program; its latency; times better than the original in the objective
        (NaN if that is the latency); and where there were several ways, times faster than the original by each.
        """
        named = {describe(way): worker for way, worker in workers.items()}
        latencies, disturbed = self._beside_the_original(named, _QUICK_TURNS)
        ratios = {way: latencies[describe(way)].ratio for way in workers}
        # A neighbour that takes a core for minutes must not decide for good how many threads there are.
        target = next(iter(workers)) if disturbed else fastest(ratios)
        loaded = {describe(way): ratio for way, ratio in ratios.items()} if len(named) > 1 else {}
        for way, worker in workers.items():
            if way != target:
                worker.close()
        latency = latencies[describe(target)]
        if self.objective == "latency" and latency.ratio_high > _WIDE * latency.ratio_low:
            latency = self._beside_the_original({"candidate": workers[target]}, _MORE_TURNS)[0]["candidate"]
        inputs, batch = self.holdout.inputs, self.sizes.latency
        pair = {"original": self.baseline, "candidate": workers[target]}
        gain = float("nan")
        if self.objective == "size":
            gain = folder_bytes(self.folder(0)) / max(size_bytes, 1)
        elif self.objective == "throughput":
            found = best_throughput(pair, "original", inputs, smallest=batch, largest=self.sizes.largest)
            gain = found["candidate"].ratio
        elif self._counter is not None:
            gain = compare_energy(self._counter, pair, "original", inputs, batch, _QUICK_TURNS)["candidate"]
        return target, latency, gain, loaded

    def _beside_the_original(self, workers: Mapping[str, Worker], turns: int) -> tuple[dict[str, Latency], bool]:
        """Latency of programs against the original, by way of the pacemaker if there is one; and of several, whether
        that one is slower now than it was.
        """
        original = {"original": self.baseline}
        paced = self.pacemaker.program() if self.pacemaker is not None else None
        if self.pacemaker is None or paced is None:
            return self.compare(original | dict(workers), "original", turns), False
        # The original takes long, and is only asked whether a minute is too disturbed to choose between ways.
        timed = (original if len(workers) > 1 else {}) | dict(workers) | {_PACEMAKER: paced}
        # Turn by turn against the pacemaker itself: by way of the original, its bad turns would count twice.
        try:
            found = self.compare(timed, _PACEMAKER, max(turns, _PACED_TURNS))
        except ProgramFailed:
            if not paced.failure:
                raise
            return self.compare(original | dict(workers), "original", turns), False
        scale = self.pacemaker.trial.ratio
        disturbed = "original" in found and scale * found["original"].ratio > _DISTURBED
        return {name: found[name].scaled(scale) for name in workers}, disturbed

    def compare(self, workers: Mapping[str, Worker], baseline: str, turns: int) -> dict[str, Latency]:
        """Latency of programs in turns, on real inputs at the batch size of latency.

        Once more where the original's process ended: that says nothing of the others.
        """
        try:
            return compare(workers, baseline, self.holdout.inputs, batch=self.sizes.latency, turns=turns)
        except ProgramFailed:
            ended = self.baseline
            if not ended.failure or all(worker is not ended for worker in workers.values()):
                raise
        self.revive()
        workers = {name: self.baseline if worker is ended else worker for name, worker in workers.items()}
        return compare(workers, baseline, self.holdout.inputs, batch=self.sizes.latency, turns=turns)

    def folder(self, number: int) -> Path:
        """What the target compiled for a trial."""
        return self._folder / f"{number:04d}" / "compiled"

    def worker(self, number: int, recipe: Recipe) -> Worker:
        """A new process running a trial's program."""
        return Worker(recipe.target, self.folder(number), self.folder(number).parent / "log.txt")

    def score(self, number: int, worker: Worker, rows: np.ndarray) -> np.ndarray:
        """Scores of a trial's program on `rows` of the holdout, as `measure.accuracy.scores` gives them."""
        folder = self.folder(number).parent / "outputs"
        files = outputs_of(worker, self.holdout, rows, folder, self.sizes.evaluation)
        found = scores(self.task, files, self.holdout.targets_of(rows))
        shutil.rmtree(folder, ignore_errors=True)
        return found

    def _original_scores(self, done: Path) -> tuple[np.ndarray, np.ndarray]:
        """The original's scores on the search part and on the certifying part."""
        rows, folder = np.arange(len(self.holdout)), self.folder(0).parent / "outputs"
        if done.exists():
            # By name, because the run folder may have been moved.
            files = [
                replace(f, path=folder / f.path.name) for f in map(ArrayFile.from_json, json.loads(done.read_text()))
            ]
        else:
            files = outputs_of(self.baseline, self.holdout, rows, folder, self.sizes.evaluation)
        if self.unlabelled:
            self.holdout = replace(self.holdout, targets=reference_targets(files))
        parts = (self.holdout.search, self.holdout.certify)
        search, certify = (scores(self.task, files, self.holdout.targets_of(part), part) for part in parts)
        if not done.exists():
            done.write_text(json.dumps([x.to_json() for x in files]))
        return search, certify

    def _compile(self, number: int, recipe: Recipe, seconds: dict[str, float], limit_s: float | None = None) -> Recipe:
        """Compile into the trial's folder; returns the recipe as it ended (see `GraphStore.after`)."""
        folder = self.folder(number)
        folder.mkdir(parents=True)
        graph, steps = self.graphs.after(recipe.steps, seconds, limit_s)
        recipe = replace(recipe, steps=steps)
        same = self._compiled.get(compiled_as(recipe))
        with clock(seconds, "compile"):
            if same is not None and same.is_dir():
                shutil.copytree(same, folder, dirs_exist_ok=True)
            else:
                self._compiler.compile(recipe.target, fuse(graph, self.task), self.task, folder)
        self._compiled[compiled_as(recipe)] = folder
        return recipe


@contextmanager
def clock(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the wall time of the block to `seconds[stage]`, if it ends well."""
    started = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
