"""The phase that trains: architectures that would win are cut, recovered, rounded; the better half goes on."""

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

from hasten.distillation.features import reads_features
from hasten.distillation.teacher import Pairs
from hasten.recipe import Recipe, Technique, make_technique, name_of, options_of
from hasten.search.candidates import (
    FEWEST_PROBES,
    Architecture,
    Candidates,
    Finish,
    better_finish,
    finishes,
    probe_budget,
    with_damage,
)
from hasten.search.finalists import chance
from hasten.search.graphs import Steps, key_of
from hasten.search.heat import Heat, Recovery, Standing, left_after, plan_heat, promise, worth, worth_first
from hasten.search.memory import give_back
from hasten.search.rate import fit_rate
from hasten.search.session import Attempt, OutOfTime, Session
from hasten.search.space import rounded_against_data
from hasten.search.trial import Trial, contenders, fits, merit_text
from hasten.task import Task
from hasten.training import mean_score, quiet, watched

# Only what is this much better than the best so far is worth training.
_MARGIN = 1.07
# Without a deadline.
_BOUND_S, _MOST_RACES = 600.0, 2
# The first race leaves time for a second one, which knows what recovers.
_FIRST_SHARE = 0.6
# A drop of this many times the budget, after all its training, tells that even more is out of reach.
_FAR = 2.0
# A lone recovery of so many steps shows what a second race should try.
_ENOUGH_STEPS = 60
_FEWEST_STEPS = 10
# What more training leaves of how much the answers differ from the original's.
_NOISE_LEFT = 0.8
# What a deadline of ten minutes leaves a small network, for a first guess at who will be trained.
_USUAL_STEPS = 200
_TIMED_BATCHES = 3
# So many for each entrant have the damage of the whole network measured.
_SHORTLISTED = 3
_QAT_STEP = 2.0
"""A training step with rounding, in steps without, until one was timed."""


@dataclass(frozen=True)
class StepCost:
    """Seconds per training step and before the first, timed on a few steps; steps per epoch.

    `teacher_s` are those that the teacher takes once, where its answers are kept from then on.
    """

    step_s: float
    setup_s: float
    per_epoch: int
    teacher_s: float = 0.0


@dataclass(frozen=True)
class _First:
    """The first batches of a loader, drawn anew in every pass, so that what is random in it stays so."""

    batches: Iterable[Any]
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.batches), self.count)


def train_and_race(session: Session) -> None:
    """Find architectures that would win, and race their recoveries until time or candidates are used up.

    Raises:
        OutOfTime: The deadline is near.
    """
    started_s = session.once("plan", "training", lambda: {"started_s": session.journal.elapsed_s})["started_s"]
    ends = finishes(session)
    if not ends:
        session.decide("training", False, "nothing ran that a trained candidate could end as")
        return
    rescue_rounding(session)
    finish = better_finish(session, ends)
    probes = probe_budget(session, finish)
    if probes < FEWEST_PROBES:
        why = f"time allows for {probes} timings of cut networks, and {FEWEST_PROBES} are needed"
        session.decide("training", False, why)
        return
    base = max(t.merit for t in session.trials if (t.recipe.steps, t.recipe.target) == (finish.steps, finish.target))
    candidates = Candidates(session, finish, probes)
    pool = candidates.first(base, _MARGIN * _standing(session).best)
    ceiling = hopeless = float("inf")
    tried: set[Steps] = set()
    seen: list[Recovery] = []
    for number in range(_MOST_RACES if session.budget.minutes is None else 99):
        standing = _standing(session)
        field = _eligible(session, candidates, pool, tried, standing, ceiling, hopeless, first=number == 0)
        if not field:
            why = f"no architecture is {_MARGIN} times better than {merit_text(standing.best, session.budget)}"
            session.decide(f"race {number + 1}", False, why)
            return
        cost = step_cost(session, max(field, key=lambda a: worth(a.merit, standing, a.recovers(_USUAL_STEPS, seen))))
        heat = _plan(session, finish, cost, len(field), number, started_s)
        if heat.entrants == 0:
            why = "the time left is too short for a recovery"
            session.decide(f"race {number + 1}", False, why, field[0].merit / standing.best)
            return
        field, entrants = _choose(session, field, standing, heat, seen, first=number == 0)
        tried |= {a.steps for a in entrants}
        _announce(session, field, entrants, standing.best, heat, seen)
        session.listener.begin(len(session.trials) - 2 + 2 * heat.entrants)
        for a, trial in race(session, entrants, heat):
            if trial.measured and a.chance is None:
                seen.append(Recovery(a.to_repair, heat.all_steps, trial.drop <= session.budget.max_drop))
            if trial.drop > _FAR * session.budget.max_drop:
                ceiling, hopeless = min(ceiling, trial.merit), min(hopeless, a.to_repair)
            elif trial.measured:  # it may need no more than some training on
                pool.append(_trained_on(session, a, trial))


def _standing(session: Session) -> Standing:
    """What there is to beat.

    What is within the budget on the search part by luck must not end the search for something that can ship.
    """
    found = contenders(session.trials, session.budget)
    return Standing.of((t.merit, chance(t, session.budget, session.counts)) for t in found)


def _eligible(
    session: Session,
    candidates: Candidates,
    pool: list[Architecture],
    tried: set[Steps],
    standing: Standing,
    ceiling: float,
    hopeless: float,
    first: bool,
) -> list[Architecture]:
    """Architectures that would win and are not known to be out of reach; after the first race, a new one among them."""
    if not first:
        best = standing.best
        goal = math.sqrt(best * _MARGIN * ceiling) if ceiling < float("inf") else best * 1.3
        if goal > best * _MARGIN and (new := candidates.at(goal)) is not None:
            pool.append(new)
    wins = [a for a in pool if standing.gain(a.merit) >= math.log(_MARGIN)]
    return list({a.steps: a for a in wins if a.to_repair < hopeless and a.steps not in tried}.values())


def _choose(
    session: Session,
    field: Sequence[Architecture],
    standing: Standing,
    heat: Heat,
    seen: Sequence[Recovery],
    first: bool,
) -> tuple[list[Architecture], list[Architecture]]:
    """The field, those in front with the damage measured on the whole network, and who of them is trained."""
    two = first and heat.entrants == 1 and heat.steps >= _ENOUGH_STEPS
    then = int(heat.steps * (1 / _FIRST_SHARE - 1)) if two else 0

    def ordered(some: Sequence[Architecture]) -> list[Architecture]:
        def expected(a: Architecture) -> float:
            others = [(b.merit, b.recovers(then, seen)) for b in some if b is not a] if then else []
            return worth_first((a.merit, a.recovers(heat.all_steps, seen)), others, standing)

        return sorted(some, key=expected, reverse=True)

    ranked = ordered(field)
    short = min(len(ranked), _SHORTLISTED * heat.entrants)
    ranked[:short] = ordered([with_damage(session, a) for a in ranked[:short]])
    return ranked, ranked[: heat.entrants]


def _announce(
    session: Session,
    field: Sequence[Architecture],
    entrants: Sequence[Architecture],
    best: float,
    heat: Heat,
    seen: Sequence[Recovery],
) -> None:
    each_s = heat.cost_s / heat.entrants
    for a in sorted(field, key=lambda a: -a.merit):
        own, other = merit_text(a.merit, session.budget), merit_text(best, session.budget)
        damage = f"{'measured' if a.measured else 'predicted'} damage {a.damage:.3g}"
        outlook = f"{damage if a.chance is None else 'trained already'}, "
        outlook += f"a chance of {a.recovers(heat.all_steps, seen):.0%} to recover in {heat.all_steps} steps"
        why = f"{'untrained ' if a.chance is None else ''}it is {own}, the best so far {other}; {outlook}"
        session.decide(a.name, a in entrants, why, a.merit / best, each_s)


def race(session: Session, entrants: Sequence[Architecture], heat: Heat) -> list[tuple[Architecture, Trial]]:
    """Train all, keep the better half, train on; returns those that had all the training, with their trials."""
    racing = [(a, a.steps) for a in entrants]
    last: dict[Steps, Trial] = {}
    standing = _standing(session)
    for rung in range(heat.rungs):
        steps, final = heat.steps * 2**rung, rung == heat.rungs - 1
        ranked = []
        recoveries = (_recovery(session, a, done, steps, rung, final) for a, done in racing)
        for (a, _), trial in zip(racing, session.attempt_all(recoveries), strict=True):
            last[a.steps] = trial
            worth = promise(trial, standing, session.budget.max_drop, session.counts, heat.rungs - 1 - rung)
            ranked.append((worth, a, trial))
        ranked.sort(key=lambda entry: -entry[0])
        kept = ranked[: max(1, len(ranked) // 2)]
        for worth, a, trial in ranked if not final else []:
            own = merit_text(trial.merit, session.budget)
            why = f"{own} with a drop of {trial.drop:+.4f} after {steps} steps: promise {worth:.3f}"
            why = f"it failed: {trial.failure}" if trial.failure else why
            chosen = not trial.failure and any(a is k[1] for k in kept)
            session.decide(f"rung {rung + 2} of {a.name}", chosen, why, trial.merit / standing.best)
        racing = [(a, _trained_steps(trial)) for _, a, trial in kept if not trial.failure]
    for a, _ in racing:
        save_rounding(session, last[a.steps], heat.steps, step_cost(session, a))
    return [(a, last[a.steps]) for a, _ in racing]


def _recovery(session: Session, a: Architecture, done: Steps, steps: int, rung: int, final: bool) -> Attempt:
    """As long a training as fits the time that is left now, at a rate that does not undo the network."""
    cost = step_cost(session, a)
    options: dict[str, Any] = {"freeze_batch_norm": True} if a.frozen else {}
    options |= {"features": "last"} if reads_features(session.bench.graphs.after((), {})[0]) else {}
    options |= fit_rate(session, a, options, steps, cost.step_s)
    # Rounding against the data takes long and says little about who recovers better.
    ending = a.finish if final else a.finish.quick()
    overhead_s = _overhead_s(session, ending.recipe(done), cost)

    def what_fits() -> dict[str, int]:
        left_s = min(session.left_s() - overhead_s, 2 * steps * cost.step_s)
        return {"steps": min(steps, max(int(left_s / cost.step_s), 0))}

    fitting = session.journal.once("plan", f"steps of rung {rung + 1} after {key_of(done)}", what_fits)["steps"]
    if fitting < min(_FEWEST_STEPS, steps):
        raise OutOfTime
    options |= {"epochs": -(-fitting // cost.per_epoch), "max_steps": fitting, "seed": session.seed + rung}
    recipe = ending.recipe((*done, make_technique("distill", options)))
    return Attempt(recipe, 0.0, session.left_s() - overhead_s)


def save_rounding(session: Session, trial: Trial, steps: int, cost: StepCost) -> None:
    """Where rounding loses too much and the float network does not: round against the data, then train while rounding.

    Args:
        session: The search.
        trial: Has a `quantize` step, or nothing is done.
        steps: Of the training.
        cost: Of a training step.
    """
    at = [i for i, step in enumerate(trial.recipe.steps) if name_of(step) == "quantize"]
    if not at or not trial.measured or trial.drop <= session.budget.max_drop:
        return
    before, plain = trial.recipe.steps[: at[0]], trial.recipe.steps[at[0]]
    drop = session.once("float", str(trial.number), lambda: {"drop": _float_drop(session, before)}).get("drop", 1.0)
    best = _standing(session).best
    trained = _rounding_trained(plain, steps, session.seed, cost)
    for step, training_s in ((rounded_against_data(plain), 0.0), (trained, steps * cost.step_s * _QAT_STEP)):
        recipe = Recipe((*before, step), trial.recipe.target)
        overhead_s = _overhead_s(session, recipe, cost)
        expected_s, left_s = training_s + overhead_s, session.left_s()
        helps = drop <= session.budget.max_drop and expected_s <= left_s
        why = f"rounding drops {trial.drop:+.4f}, the float network {drop:+.4f}"
        why += f"; {left_s:.0f} s are left" if expected_s > left_s else ""
        if step != plain:
            what = f"{name_of(step)} in place of plain rounding in trial {trial.number}"
            session.decide(what, helps, why, trial.merit / best, expected_s)
        if step != plain and helps and fits(session.attempt(recipe, 0.0, left_s - overhead_s), session.budget):
            return


def rescue_rounding(session: Session) -> None:
    """The same for the original: where rounding is the fastest but loses too much."""
    best = _standing(session).best
    rounded = [t for t in session.trials if t.measured and any(name_of(s) == "quantize" for s in t.recipe.steps)]
    fastest = max(rounded, key=lambda t: t.merit, default=None)
    if fastest is None or fastest.merit < best * _MARGIN or fastest.drop <= session.budget.max_drop:
        return
    cost = step_cost(session, None)
    save_rounding(session, fastest, 2 * max(cost.per_epoch, 20), cost)


def step_cost(session: Session, a: Architecture | None) -> StepCost:
    """Timed on the first steps of a recovery, then learned from the last one."""

    def measure() -> dict[str, float]:
        session.listener.trying("timing training steps")
        graph, _ = session.bench.graphs.after(a.steps if a else (), {})
        task, per_epoch = session.bench.inner, len(Pairs.of(session.bench.inner))
        started = time.perf_counter()
        with quiet(), watched() as watch:
            # In the second pass the teacher has answered, unless the loader augments.
            make_technique("distill", {"epochs": 2}).apply(graph, _with_few_batches(task))
        give_back()
        wall_s, half = time.perf_counter() - started, len(watch.step_s) // 2
        asked_s, step_s = statistics.median(watch.step_s[1:half] or watch.step_s), min(watch.step_s[half:])
        found = StepCost(
            step_s, max(wall_s - sum(watch.step_s), 0.0), per_epoch, max(asked_s - step_s, 0.0) * per_epoch
        )
        return asdict(found) | {"wall_s": wall_s}

    found = session.journal.once("plan", "training step", measure)
    learned = [x for x in map(partial(_learned_step_s, setup_s=found["setup_s"]), session.trials) if x]
    if learned:
        return StepCost(learned[-1], found["setup_s"], found["per_epoch"])
    return StepCost(found["step_s"], found["setup_s"], found["per_epoch"], found["teacher_s"])


def _with_few_batches(task: Task) -> Task:
    """The task with the first batches alone to train on, wherever they come from."""
    source = next(name for name in ("train", "calibration", "holdout") if getattr(task, name) is not None)
    few = _First(getattr(task, source), min(_TIMED_BATCHES, len(Pairs.of(task))))
    return replace(task, **{source: few})  # type: ignore[arg-type]


def _learned_step_s(trial: Trial, setup_s: float) -> float:
    """Seconds per step of a trial's recovery; 0 if it had none."""
    steps = [options_of(step) for step in trial.recipe.steps if name_of(step) == "distill"]
    count = (steps[-1]["stop_after"] or steps[-1]["max_steps"]) if steps else 0
    return max(trial.seconds.get("distill", 0.0) - setup_s, 0.0) / count if count else 0.0


def _plan(session: Session, finish: Finish, cost: StepCost, available: int, number: int, started_s: float) -> Heat:
    def make() -> dict[str, float]:
        left_s = session.left_s()
        if left_s == float("inf"):
            left_s = _BOUND_S - (session.journal.elapsed_s - started_s)
        share = _FIRST_SHARE if number == 0 else 1.0
        left_s -= cost.teacher_s
        overhead_s = _overhead_s(session, finish.recipe(()), cost)
        heat = plan_heat(share * left_s, cost.step_s, overhead_s, cost.per_epoch, available)
        if heat.entrants < 2 and heat.steps < _ENOUGH_STEPS:  # too little for two races is best spent on one
            heat = plan_heat(0.9 * left_s, cost.step_s, overhead_s, cost.per_epoch, available)
        return asdict(heat) | {"left_s": left_s, "step_s": cost.step_s, "overhead_s": overhead_s}

    found = session.journal.once("plan", f"race {number + 1}", make)
    return Heat(found["entrants"], found["rungs"], found["steps"], found["cost_s"])


def _overhead_s(session: Session, recipe: Recipe, cost: StepCost) -> float:
    """What a trained trial takes beside its training steps."""
    rounding = sum(session.step_s(step) for step in recipe.steps if step.stage.name == "QUANTIZE")
    return session.trial_s(Recipe((), recipe.target)) + rounding + cost.setup_s


def _float_drop(session: Session, steps: Steps) -> float:
    graph, _ = session.bench.graphs.after(steps, {})
    score = mean_score(session.bench.inner)
    reference = session.bench.baseline_search.mean()
    return float(reference) - score(graph)


def _rounding_trained(step: Technique, steps: int, seed: int, cost: StepCost) -> Technique:
    """`train_quantized` that rounds as a `quantize` does."""
    same = {
        k: v
        for k, v in options_of(step).items()
        if k in ("placement", "observer", "weight_bits", "samples", "keep_float")
    }
    epochs = -(-steps // cost.per_epoch)
    return make_technique("train_quantized", same | {"epochs": epochs, "max_steps": steps, "seed": seed})


def _trained_on(session: Session, a: Architecture, trial: Trial) -> Architecture:
    """A recovered architecture as one to train on, its chance predicted from what its first training left.

    Where it may be certified as it is, that is the chance if it should not be.
    """
    later = replace(trial, drop=left_after(trial.drop, 1), noise=_NOISE_LEFT * trial.noise)
    odds = chance(later, session.budget, session.counts)
    now = chance(trial, session.budget, session.counts) if fits(trial, session.budget) else 0.0
    steps = _trained_steps(trial)
    better = max(odds - now, 0.0) / max(1 - now, 1e-6)
    return replace(a, name=f"{a.name}, trained on", steps=steps, merit=trial.merit, measured=True, chance=better)


def _trained_steps(trial: Trial) -> Steps:
    return tuple(step for step in trial.recipe.steps if step.stage.name != "QUANTIZE")
