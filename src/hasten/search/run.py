"""`hasten.run`: from a task and a budget to the fastest certified artifact and a report."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten import artifact
from hasten.artifact import Artifact
from hasten.compiling import input_specs
from hasten.errors import InvalidInput
from hasten.graph.capture import capture
from hasten.machine import fingerprint
from hasten.measure.certificate import is_binary, samples_needed
from hasten.measure.holdout import store_holdout
from hasten.measure.latency import Latency, Throughput
from hasten.recipe import Recipe
from hasten.report.html import write_report
from hasten.search.bench import Bench
from hasten.search.finals import Final, choose_finalists, error_shares, run_finals
from hasten.search.journal import Journal
from hasten.search.progress import Listener, Silent
from hasten.search.space import post_training, usable_targets
from hasten.search.trial import Trial
from hasten.task import Budget, Task

# The final timing and the certificates take about as long as this many trials.
_FINALS_IN_TRIALS = 2.0
_CHECK_ROWS = 4


@dataclass(frozen=True)
class Result:
    """What a run found.

    Attributes:
        folder: The run folder.
        best: The fastest artifact that passed its certificate, or None.
        explanation: One sentence on how it ended.
        trials: Every trial; number 0 is the original.
        finals: The certified finalists, fastest first.
        original_latency, original_throughput: The original in the final timing.
        report: The HTML report.
    """

    folder: Path
    best: Artifact | None
    explanation: str
    trials: list[Trial]
    finals: list[Final]
    original_latency: Latency
    original_throughput: Throughput
    report: Path


def run(
    task: Task,
    budget: Budget | None = None,
    *,
    targets: str | Sequence[str] = "auto",
    out: str | os.PathLike[str] = "runs/last",
    seed: int = 0,
    listener: Listener | None = None,
) -> Result:
    """Find the fastest version of `task.model` whose score provably drops by at most the budget.

    Args:
        task: Model, data and score.
        budget: Accepted drop, confidence, and time; default: one point at 95%, no deadline.
        targets: "auto" or target names.
        out: Run folder; must be new or empty.
        seed: Decides the holdout split and everything random after it.
        listener: Receives progress.

    Raises:
        InvalidInput: The task, the budget or the folder breaks a rule; nothing was searched yet.
    """
    started = time.perf_counter()
    budget, listener = budget or Budget(), listener or Silent()
    usable, missing = usable_targets(targets)
    folder = _new_folder(Path(out))
    journal = Journal(folder / "journal.jsonl")
    listener.trying("capturing the model")
    graph = capture(task.model, task.inner.example)
    listener.trying("reading the holdout")
    holdout = store_holdout(task, folder / "data", seed)
    listener.trying("measuring the original")
    setup = {
        "task": task.name,
        "device": fingerprint(),
        "budget": asdict(budget),
        "seed": seed,
        "missing": missing,
        "search": len(holdout.search),
        "certify": len(holdout.certify),
    }
    with Bench(task, graph, holdout, folder / "trials") as bench:
        _check_certifiable(bench, budget)
        journal.append("begin", setup)
        for name, reason in missing.items():
            listener.say(f"skipping target {name}: needs {reason}")
        trials = _search(bench, post_training(usable), budget, started, journal, listener)
        finalists = choose_finalists(trials[1:], budget)
        listener.trying(f"certifying {len(finalists)} finalists")
        finals, latency, throughput = run_finals(bench, finalists, budget)
        result = _conclude(bench, folder, trials, finals, latency, throughput)
    _write_summary(result, setup | {"wall_s": time.perf_counter() - started})
    journal.append("end", {"explanation": result.explanation})
    write_report(result.folder)
    return result


def _new_folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise InvalidInput(f"`out` must be a new or empty folder, but {out} has files. Name another folder.")
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InvalidInput(f"`out` must be a writable folder, but {out} is not: {error.strerror}.") from error
    return out.resolve()


def _check_certifiable(bench: Bench, budget: Budget) -> None:
    """Refuse before searching when no result on this holdout could ever pass."""
    n = len(bench.holdout.certify)
    if not is_binary(bench.baseline_scores):
        needed = 50
    else:
        needed = samples_needed(budget.max_drop, (1 - budget.confidence) * error_shares(budget.finalists)[0])
    if n < needed:
        total = int(np.ceil(needed * len(bench.holdout) / n)) + 1
        raise InvalidInput(
            f"`holdout` must be large enough to certify a drop of {budget.max_drop:g} at {budget.confidence:.0%} "
            f"confidence: at least {needed} certifying samples, about {total} in all, but it has {len(bench.holdout)}, "
            f"of which {n} certify. Add samples, raise `max_drop`, or lower `confidence` or `finalists`."
        )


def _search(
    bench: Bench, recipes: list[Recipe], budget: Budget, started: float, journal: Journal, listener: Listener
) -> list[Trial]:
    deadline = started + budget.minutes * 60 if budget.minutes else float("inf")
    trials = [bench.original()]
    journal.append("trial", trials[0].to_json())
    listener.begin(len(recipes))
    longest = 0.0
    for number, recipe in enumerate(recipes, start=1):
        if time.perf_counter() + longest * (1 + _FINALS_IN_TRIALS) > deadline:
            listener.say(f"deadline near: {len(recipes) - number + 1} recipes not tried")
            break
        begin = time.perf_counter()
        try:
            listener.trying(Trial(number, recipe).name)
            trial = bench.try_recipe(number, recipe)
        except KeyboardInterrupt:
            listener.say("interrupted: certifying the best so far (Ctrl-C again to stop at once)")
            break
        longest = max(longest, time.perf_counter() - begin)
        trials.append(trial)
        journal.append("trial", trial.to_json())
        listener.done(_line(trial), _best_line(trials, budget))
    return trials


def _line(trial: Trial) -> str:
    if trial.failure:
        return f"  {trial.name}: failed: {trial.failure}"
    return f"  {trial.name}: {trial.ratio:.2f}x, drop {trial.drop:+.4f} on the search part"


def _best_line(trials: list[Trial], budget: Budget) -> str:
    within = [t for t in trials if t.latency and t.drop <= budget.max_drop]
    return f"best {max(t.ratio for t in within):.2f}x" if within else ""


def _conclude(
    bench: Bench,
    folder: Path,
    trials: list[Trial],
    finals: list[Final],
    latency: Latency,
    throughput: Throughput,
) -> Result:
    finals = sorted(finals, key=lambda f: -f.latency.ratio)
    passing = [f for f in finals if f.certificate.passed]
    best = _write_best(bench, folder, passing[0]) if passing else None
    explanation = _explain(passing, finals, trials)
    return Result(folder, best, explanation, trials, finals, latency, throughput, folder / "report.html")


def _explain(passing: list[Final], finals: list[Final], trials: list[Trial]) -> str:
    if passing:
        best = passing[0]
        return (
            f"{best.trial.name} is {best.latency.ratio:.2f}x faster than the original and passed: the drop is at most "
            f"{best.certificate.upper_bound:.4f} with {best.certificate.family_confidence:.0%} confidence."
        )
    if finals:
        nearest = min(finals, key=lambda f: f.certificate.upper_bound)
        return (
            f"Nothing passed. Nearest: {nearest.trial.name}, whose drop of {nearest.certificate.drop:.4f} can only be "
            f"bounded by {nearest.certificate.upper_bound:.4f}, above the budget of {nearest.certificate.max_drop:g}. "
            "More holdout samples or a larger budget would help."
        )
    measured = [t for t in trials[1:] if t.latency]
    if measured:
        nearest_trial = min(measured, key=lambda t: t.drop)
        return (
            f"Nothing kept the budget on the search part. Nearest: {nearest_trial.name}, drop {nearest_trial.drop:.4f}."
        )
    return "No candidate could be measured; the trials say why."


def _write_best(bench: Bench, folder: Path, final: Final) -> Artifact:
    rows = np.resize(bench.holdout.search, bench.sizes.fixed or _CHECK_ROWS)
    with bench.worker(final.trial.number, final.trial.recipe) as worker:
        scratch = bench.folder(final.trial.number).parent / "check"
        outputs = worker.infer(bench.holdout.inputs, rows, scratch, len(rows))
    arrays = [x.open()[rows] for x in bench.holdout.inputs]
    measurements = {
        "device": fingerprint(),
        "latency": final.latency.to_json(),
        "throughput": final.throughput.to_json(),
        "size_bytes": final.trial.size_bytes,
        "peak_memory_bytes": final.trial.peak_memory_bytes,
    }
    return artifact.write(
        folder / "best.hasten",
        bench.folder(final.trial.number),
        final.trial.recipe,
        input_specs(bench.input_names, arrays, bench.sizes.fixed),
        arrays,
        [x.open() for x in outputs],
        certificate=final.certificate.to_json(),
        measurements=measurements,
    )


def _write_summary(result: Result, setup: dict[str, Any]) -> None:
    document = setup | {
        "explanation": result.explanation,
        "best": result.best.path.name if result.best else None,
        "original": {"latency": result.original_latency.to_json(), "throughput": result.original_throughput.to_json()},
        "trials": [trial.to_json() for trial in result.trials],
        "finals": [
            {
                "number": f.trial.number,
                "latency": f.latency.to_json(),
                "throughput": f.throughput.to_json(),
                "certificate": f.certificate.to_json(),
            }
            for f in result.finals
        ],
    }
    scratch = result.folder / ".result.json"
    scratch.write_text(json.dumps(document, indent=2))
    scratch.rename(result.folder / "result.json")
