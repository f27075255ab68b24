"""What a running search holds: the bench, the journal, the time left, and every trial so far."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from hasten import judged
from hasten.errors import HastenError, reason
from hasten.recipe import Recipe, Stage, Technique, name_of, options_of
from hasten.search.bench import Bench
from hasten.search.distributed import Job, Nodes, NodesLost
from hasten.search.finalists import Counts
from hasten.search.finals import throughput_limit_s
from hasten.search.journal import Journal
from hasten.search.limits import applying
from hasten.search.progress import Listener
from hasten.search.ship import keep_best_so_far
from hasten.search.trial import Trial, contenders, merit_text
from hasten.task import Budget

_FIRST_GUESS_S = 5.0
# Starting runtimes, warming up, interleaved turns, packing: what the finals take beside inference.
_FINALS_FIXED_S = 12.0
_SAFETY = 1.15
# What calibration takes, in inferences of the original per sample, until it is known.
_PASSES_NEAREST, _PASSES = 5, 25


@dataclass(frozen=True)
class Attempt:
    """A recipe to try; what it is expected to take (default: learned so far); the longest time for its training."""

    recipe: Recipe
    expected_s: float | None = None
    limit_s: float | None = None


class OutOfTime(Exception):
    """What was asked for would not leave time for the finals."""


@dataclass(frozen=True)
class Session:
    """One search in one folder. Whatever it does is on record in the journal, and is not done again by a resume.

    Attributes:
        bench: Measures.
        budget: What may be lost, and by when.
        journal: The record.
        listener: Receives progress.
        folder: The run folder.
        seed: Everything random after the split of the holdout.
        trials: Every trial, in order of its number.
        nodes: Machines for independent trials; None: everything is tried here.
    """

    bench: Bench
    budget: Budget
    journal: Journal
    listener: Listener
    folder: Path
    seed: int
    trials: list[Trial] = field(default_factory=list)
    nodes: Nodes | None = None

    @property
    def best(self) -> Trial | None:
        """The best candidate within the budget on the search part so far."""
        return max(contenders(self.trials, self.budget), key=lambda t: t.merit, default=None)

    @cached_property
    def counts(self) -> Counts:
        """Of the search part and of the certifying part."""
        holdout = self.bench.holdout
        searched, certified = len(holdout.search), len(holdout.certify)
        return Counts(searched, certified, 1 / searched if self.bench.right_or_wrong else 0.0)

    @cached_property
    def damage(self) -> Callable[[GraphModule], float]:
        """The damage of a network to the original's answers: see `answers_damage`."""
        from hasten.search.damage import answers_damage  # which reads a session

        return answers_damage(self)

    def left_s(self) -> float:
        """Seconds until the finals must begin; infinite without a deadline."""
        if self.budget.minutes is None:
            return float("inf")
        return self.budget.minutes * 60 - self.journal.elapsed_s - self._finals_s()

    def is_known(self, recipe: Recipe) -> bool:
        """Whether a recipe's trial is on record, so that it takes no time."""
        return self.journal.find("trial", _key(recipe)) is not None

    def attempt(self, recipe: Recipe, expected_s: float | None = None, limit_s: float | None = None) -> Trial:
        """The trial of a recipe: from the record, or made now.

        Args:
            recipe: What to try.
            expected_s: What it will take; default: learned from the trials so far.
            limit_s: Longest time for its training.

        Raises:
            OutOfTime: It is expected to take longer than there is time left.
        """
        trial = self._on_record(recipe)
        if trial is None:
            self._check_time(Attempt(recipe, expected_s, limit_s))
            self.listener.trying(Trial(0, recipe).name)
            trial = self.bench.try_recipe(len(self.journal.read("trial")), recipe, limit_s)
            self._record(recipe, trial)
        if self.best is trial:
            self._keep(trial)
        return trial

    def attempt_all(self, attempts: Iterable[Attempt]) -> list[Trial]:
        """The trials of several recipes that do not depend on each other, on all machines there are.

        Args:
            attempts: Asked for one by one, each when there is a machine for it.

        Raises:
            OutOfTime: One is expected to take longer than there is time left; those before it are on record.
        """
        if self.nodes is None:
            return [self.attempt(a.recipe, a.expected_s, a.limit_s) for a in attempts]
        before = len(self.journal.read("trial"))
        jobs: list[Job] = []
        found: list[Trial] = []

        def missing() -> Iterator[Job]:
            for a in attempts:
                if (known := self._on_record(a.recipe)) is not None:
                    found.append(known)
                    continue
                self._check_time(a)
                self.listener.trying(Trial(0, a.recipe).name)
                jobs.append(Job(before + len(jobs), a.recipe, a.limit_s))
                yield jobs[-1]

        try:
            for trial, node in self.nodes.trials(missing()):
                self._record(jobs[trial.number - before].recipe, trial, node=node)
                found.append(trial)
        finally:
            # Not sooner: packing it would disturb a measurement on this machine.
            if self.best is not None:
                self._keep(self.best)
        return found

    def _keep(self, trial: Trial) -> None:
        started = time.perf_counter()
        self.bench.graphs.pin(trial.recipe.steps)
        try:
            keep_best_so_far(self.bench, self.folder, trial)
        except (HastenError, OSError) as error:  # the search is worth more than its copy
            self.listener.say(f"{trial.name} could not be kept as the best so far: {reason(error)}")
            return
        took = {"seconds": {"pack": time.perf_counter() - started}}
        self.journal.once("kept", str(trial.number), lambda: took)

    def _on_record(self, recipe: Recipe) -> Trial | None:
        event = self.journal.find("trial", _key(recipe))
        if event is None:
            return None
        trial = Trial.from_json(event)
        if again := [t for t in self.trials if t.number == trial.number]:
            return again[0]
        self._add(trial)
        return trial

    def _record(self, recipe: Recipe, trial: Trial, **about: str) -> None:
        self.journal.append("trial", trial.to_json() | about, _key(recipe))
        self._add(trial)

    def _add(self, trial: Trial) -> None:
        self.trials.append(trial)
        best = f"best {merit_text(self.best.merit, self.budget)}" if self.best else ""
        self.listener.done(_line(trial, self.budget), best)

    def _check_time(self, a: Attempt) -> None:
        if self.expected_s(a) > self.left_s():
            raise OutOfTime

    def decide(self, what: str, chosen: bool, why: str, gain: float | None = None, cost_s: float | None = None) -> None:
        """Put a decision on record.

        Args:
            what: The candidate or phase.
            chosen: Whether it is gone on with.
            why: In words, with the numbers.
            gain: Predicted merit over that of the best so far.
            cost_s: Predicted seconds.
        """
        about: dict[str, Any] = {"what": what, "chosen": chosen, "why": why}
        about |= {"predicted_gain": None if gain is None else round(gain, 4)}
        about |= {"predicted_cost_s": None if cost_s is None else round(cost_s, 1)}
        if self.journal.find("decision", key := f"{what}: {why}"[:200]) is None:
            self.journal.append("decision", about, key)
            self.listener.say(f"  {'+' if chosen else '-'} {what}: {why}")

    def careful(self, what: str, phase: Callable[[], None]) -> None:
        """Run a phase; what ends it, such as a loss that is NaN, is put on record, and the search goes on."""
        try:
            phase()
        except (OutOfTime, NodesLost):
            raise
        except Exception as error:  # also the user's own, from a loader or a loss
            self.decide(what, False, f"it failed: {reason(error)}")

    def once(self, event: str, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """See `Journal.once`; a failure is put on record as `{"failure": reason}`."""

        def careful() -> dict[str, Any]:
            try:
                return make()
            except Exception as error:  # also a runtime's own: the search must outlive it
                return {"failure": reason(error)}

        return self.journal.once(event, key, careful)

    def expected_s(self, a: Attempt) -> float:
        """What an attempt will take: as it says, else learned from the trials so far."""
        return self.trial_s(a.recipe) if a.expected_s is None else a.expected_s

    def trial_s(self, recipe: Recipe) -> float:
        """What a trial takes beside its training: the longest of its target so far (some shared what was compiled), and
        the mean of its techniques.
        """
        own = [
            sum(_measuring(t)) for t in self.trials if t.measured and name_of(t.recipe.target) == name_of(recipe.target)
        ]
        others = [sum(_measuring(t)) for t in self.trials[1:] if t.measured] or [_FIRST_GUESS_S]
        return max(own, default=sum(others) / len(others)) + sum(map(self.step_s, recipe.steps))

    def step_s(self, step: Technique) -> float:
        """Mean seconds that a technique took so far, rounding as in `step` if it rounds.

        If that is not known: a guess for what calibrates, 0 for the rest.
        """
        name = name_of(step)
        alike = [t for t in self.trials if name in t.seconds and _rounding(step) in map(_rounding, t.recipe.steps)]
        if alike:
            return sum(t.seconds[name] for t in alike) / len(alike)
        original = self.trials[0].latency if self.trials else None
        if original is None or step.stage is not Stage.QUANTIZE:
            return 0.0
        passes = _PASSES_NEAREST if _rounding(step)[1] == "nearest" else _PASSES
        return passes * int(options_of(step).get("samples", 0)) * original.median_ms / 1e3

    def _finals_s(self) -> float:
        """What the finals will take: inference on the certifying part, and throughput at growing batches."""
        holdout = self.bench.holdout
        share = len(holdout.certify) / max(len(holdout.search), 1)
        # Of what may be in the finals: a runtime that is slow does not get there. One more may be found.
        ranked = sorted(contenders(self.trials, self.budget), key=lambda t: -t.merit)[: self.budget.finalists]
        slowest = max((t.seconds.get("accuracy", 0.0) for t in ranked or self.trials), default=0.0)
        certified = min(len(ranked) + 1, self.budget.finalists)
        original_s = self.trials[0].latency.median_ms / 1e3 if self.trials and self.trials[0].latency else 0.0
        batches_s = min(1.5 * original_s * 2 * self.bench.sizes.largest * 5, throughput_limit_s(self.budget))
        return (share * slowest * certified + batches_s + _FINALS_FIXED_S) * _SAFETY


def _key(recipe: Recipe) -> str:
    return hashlib.sha256(recipe.to_yaml().encode()).hexdigest()[:16]


def _rounding(step: Technique) -> tuple[str, str]:
    return name_of(step), str(options_of(step).get("rounding", ""))


def _measuring(trial: Trial) -> list[float]:
    return [trial.seconds.get(stage, 0.0) for stage in ("compile", "load", "latency", "accuracy", "unload")]


def _line(trial: Trial, budget: Budget) -> str:
    if trial.failure:
        return f"  {trial.name}: failed: {trial.failure}"
    if trial.judged:
        found = judged.describe(trial.judged, applying(trial.recipe.target, budget.limits))
        return f"  {trial.name}: {found} ({trial.recipe.target.evidence}), drop {trial.drop:+.4f} on the search part"
    objective = budget.objective
    gain = "" if objective == "latency" else f", {objective} {trial.merit:.2f}x better"
    return f"  {trial.name}: {trial.ratio:.2f}x faster{gain}, drop {trial.drop:+.4f} on the search part"
