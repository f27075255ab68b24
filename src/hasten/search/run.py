"""`hasten.run`: from a task and a budget to the best certified artifact and a report."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.fx import GraphModule

from hasten.artifact import Artifact
from hasten.errors import InvalidInput
from hasten.graph.capture import capture
from hasten.machine import fingerprint
from hasten.measure.certificate import samples_needed
from hasten.measure.holdout import Holdout, store_holdout
from hasten.measure.latency import Latency, Throughput
from hasten.recipe import Target
from hasten.report.data import DETAILS
from hasten.report.html import write_report
from hasten.search.bench import Bench, clock
from hasten.search.compiler import COMPILE_SECONDS
from hasten.search.details import write_details
from hasten.search.distributed import Nodes, ray_for_trials
from hasten.search.ending import explain, seconds_by_stage
from hasten.search.finalists import choose_finalists
from hasten.search.finals import Final, Finals, run_finals
from hasten.search.folder import DATA, JOURNAL, check_same, identity, opened
from hasten.search.journal import Journal
from hasten.search.limits import check_finalists
from hasten.search.packing import ship_each, ship_final
from hasten.search.post_training import post_training
from hasten.search.progress import Listener, Silent
from hasten.search.race import train_and_race
from hasten.search.retime import retime, with_new_times
from hasten.search.session import OutOfTime, Session
from hasten.search.ship import remove_candidates
from hasten.search.space import usable_targets
from hasten.search.trial import Trial, floor_of
from hasten.task import Budget, Task

_BEST = "best.hasten"


@dataclass(frozen=True)
class Result:
    """What a run found.

    Attributes:
        folder: The run folder.
        best: The best artifact that passed its certificate, or None.
        best_of: Of several judged targets the best of each that passed, by name; empty where targets are timed.
        explanation: One sentence on how it ended.
        trials: Every trial; number 0 is the original.
        finals: The certified finalists, best first.
        original_latency, original_throughput: The original in the final timing.
        report: The HTML report.
    """

    folder: Path
    best: Artifact | None
    best_of: dict[str, Artifact]
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
    limits: Mapping[str, float] | None = None,
    out: str | os.PathLike[str] = "runs/last",
    seed: int = 0,
    resume: bool = False,
    ray: str | None = None,
    listener: Listener | None = None,
) -> Result:
    """Find the best version of `task.model` whose score provably drops by at most the budget.

    Args:
        task: Model, data and score.
        budget: Accepted drop, confidence, time and objective; default: the fastest at one point and 95%, no deadline.
        targets: "auto" or target names: all timed, or all judged by a simulator or the vendor's compiler.
        limits: Replaces `budget.limits`: the most (or least) that is accepted of what judged targets state, such as
            {"luts": 40000}. What passes is then what keeps the accuracy within them; nothing is timed but the original.
        out: Run folder; must be new or empty, or hold a run to resume.
        seed: Decides the holdout split and everything random after it.
        resume: Go on with the run in `out`, if there is one; what it finished is not done again.
        ray: "auto" or the address of a Ray cluster, whose machines make independent trials; None: all are made here.
        listener: Receives progress.

    Raises:
        InvalidInput: The task, the budget or the folder breaks a rule; nothing was searched yet.
    """
    budget, listener = budget or Budget(), listener or Silent()
    budget = budget if limits is None else replace(budget, limits=dict(limits))
    if ray is not None:
        ray_for_trials()
    if seed < 0:
        raise InvalidInput(f"`seed` must be at least 0, but got {seed}.")
    usable, missing = usable_targets(targets, budget.limits)
    check_finalists(usable, budget)
    with opened(Path(out), resume) as folder:
        # From here on the folder is that of a run, and a search killed before its first event can be resumed.
        (folder / JOURNAL).touch()
        journal = Journal(folder / JOURNAL)
        graph, holdout, task_is, taken = _read(task, folder, seed, listener)
        setup = {"task": task.name, "device": fingerprint(), "budget": asdict(budget), "seed": seed, "missing": missing}
        setup |= {"search": len(holdout.search), "certify": len(holdout.certify)}
        begin: dict[str, Any] = {"is": setup | {"task": task_is, "targets": sorted(usable)}, "seconds": taken}
        if (begun := journal.find("begin")) is not None:
            check_same(begun["is"], begin["is"])
        listener.trying("measuring the original")
        about = budget.objective, _compile_limit_s(budget)
        with Bench(task, graph, holdout, folder / "trials", *about, limits=budget.limits) as bench:
            _check_certifiable(bench, budget)
            journal.once("begin", "", lambda: setup | begin)
            if missing:
                listener.say(f"not installed here, so not tried: {', '.join(missing)}; `hasten targets` says more")
            with contextlib.ExitStack() as stack:
                nodes = None
                if ray is not None and journal.find("finalists") is None:
                    listener.trying("starting the original on the machines of the cluster")
                    nodes = stack.enter_context(Nodes(ray, task, holdout, folder, *about, budget.limits))
                    _tell(nodes, journal, listener)
                session = Session(bench, budget, journal, listener, folder, seed, nodes=nodes)
                _try_all(session, usable)
            finals = _finals(session)
            return _conclude(session, finals, setup)


def _read(
    task: Task, folder: Path, seed: int, listener: Listener
) -> tuple[GraphModule, Holdout, dict[str, str], dict[str, float]]:
    """The captured original, its holdout, what tells the task from others, and the seconds that each took."""
    taken: dict[str, float] = {}
    listener.trying("capturing the model")
    with clock(taken, "capture"):
        graph = capture(task.model, task.inner.example)
    listener.trying("reading the holdout")
    with clock(taken, "holdout"):
        holdout = store_holdout(task, folder / DATA, seed)
    with clock(taken, "identity"):
        same = identity(graph, holdout, {"train": task.train, "calibration": task.calibration}, seed)
    return graph, holdout, same, taken


def _tell(nodes: Nodes, journal: Journal, listener: Listener) -> None:
    """Put on record who takes part, in this session, and who does not."""
    journal.append("nodes", {"names": nodes.names, "refused": nodes.refused, "shared": nodes.shared})
    for name, why in nodes.refused.items():
        listener.say(f"node {name} is left out: {why}")
    for host in nodes.shared:
        listener.say(f"several nodes are on {host}: their timings disturb each other")


def _try_all(session: Session, usable: Mapping[str, type[Target]]) -> None:
    """All phases by cost, until they or the time are over."""
    journal, budget, listener = session.journal, session.budget, session.listener
    session.trials.append(Trial.from_json(journal.once("trial", "original", session.bench.original_on_record)))
    phases: list[tuple[str, Callable[[], None]]] = [
        ("post-training", lambda: post_training(session, usable)),
        ("timing again", lambda: retime(session)),
    ]
    trains = budget.training and (session.bench.task.train is not None or budget.minutes is not None)
    if trains and budget.limits and len(usable) > 1:
        why = "room under the limits of one judged target says nothing about another; search for one at a time to train"
        session.decide("training", False, why)
    elif trains:
        phases.append(("training", lambda: train_and_race(session)))
    if journal.find("finalists") is None:
        try:
            for name, phase in phases:
                session.careful(name, phase)
        except OutOfTime:
            listener.say("deadline near: the rest is not tried")
        except KeyboardInterrupt:
            listener.say("interrupted: certifying the best so far (Ctrl-C again to stop at once)")


def _finals(session: Session) -> Finals:
    journal, budget, listener = session.journal, session.budget, session.listener
    session.trials[:] = with_new_times([Trial.from_json(event) for event in journal.read("trial")], journal)
    # Chosen once: a resumed run may not choose again after the certifying part was touched.
    chosen = journal.once(
        "finalists",
        "",
        lambda: {"numbers": [t.number for t in choose_finalists(session.trials, budget, session.counts)]},
    )["numbers"]
    listener.trying(f"certifying {len(chosen)} finalists")
    finalists = [session.trials[number] for number in chosen]
    found = journal.once("finals", "", lambda: run_finals(session.bench, finalists, budget).to_json())
    for number, why in found["failed"].items():
        listener.say(f"finalist {session.trials[int(number)].name} is out: {why}")
    return Finals.from_json(found, session.trials)


def _may_remake(session: Session, trial: Trial) -> bool:
    """Whether the deadline leaves time to make a trial's graph again for the report alone."""
    if session.budget.minutes is None:
        return True
    left_s = session.budget.minutes * 60 - session.journal.elapsed_s
    return sum(map(session.step_s, trial.recipe.steps)) < left_s


def _compile_limit_s(budget: Budget) -> float:
    """A compiler that hangs may cost a quarter of the time, but one that works gets at least a minute.

    Where compiling is all there is to judge by, as of logic that is synthesized for minutes, all of it.
    """
    if budget.minutes is None:
        return COMPILE_SECONDS
    return budget.minutes * 60 if budget.limits else min(COMPILE_SECONDS, max(60.0, budget.minutes * 15))


def _check_certifiable(bench: Bench, budget: Budget) -> None:
    """Refuse before searching when no result on this holdout could ever pass."""
    n = len(bench.holdout.certify)
    needed = samples_needed(budget.max_drop, 1 - budget.confidence) if bench.right_or_wrong else 50
    if n < needed:
        total = int(np.ceil(needed * len(bench.holdout) / n)) + 1
        raise InvalidInput(
            f"`holdout` must be large enough to certify a drop of {budget.max_drop:g} at {budget.confidence:.0%} "
            f"confidence: at least {needed} certifying samples, about {total} in all, but it has {len(bench.holdout)}, "
            f"of which {n} certify. Add samples, raise `max_drop`, or lower `confidence`."
        )


def _conclude(session: Session, finals: Finals, setup: Mapping[str, Any]) -> Result:
    budget, folder, journal = session.budget, session.folder, session.journal
    ranked = sorted(finals.finals, key=lambda f: -f.merit(budget.objective))
    floor = floor_of(session.trials[0], budget)
    passing = [final for final in ranked if final.passed(budget) and final.merit(budget.objective) > floor]
    taken: dict[str, float] = {}
    with clock(taken, "pack"):
        best = ship_final(session, passing[0], _BEST) if passing else None
        best_of = ship_each(session, passing, best) if best and budget.limits else {}
    if passing:
        with clock(taken, "details"):
            write_details(
                session.bench, passing[0].trial, folder / DETAILS, remake=_may_remake(session, passing[0].trial)
            )
    remove_candidates(folder)
    session.bench.graphs.clean()
    explanation = explain(passing, finals, session.trials, budget)
    document = (
        dict(setup)
        | finals.to_json()
        | {
            "explanation": explanation,
            "best": best.path.name if best else None,
            "best_of": {name: artifact.path.name for name, artifact in best_of.items()},
            "best_number": passing[0].trial.number if passing else None,
            "finals": [final.to_json() for final in ranked],
            "trials": [trial.to_json() for trial in session.trials],
            "seconds": seconds_by_stage(journal, taken),
            "wall_s": journal.elapsed_s,
        }
    )
    scratch = folder / ".result.json"
    scratch.write_text(json.dumps(document, indent=2))
    scratch.rename(folder / "result.json")
    journal.once("end", "", lambda: {"explanation": explanation})
    report = write_report(folder)
    return Result(folder, best, best_of, explanation, session.trials, ranked, finals.latency, finals.throughput, report)
