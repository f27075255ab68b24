"""The phases that train nothing: runtimes and precisions of the original, then the original quantized for each."""

import itertools
from collections.abc import Iterable, Iterator, Mapping

from hasten.recipe import Recipe, Target, name_of, options_of
from hasten.search.finalists import chance
from hasten.search.session import Attempt, OutOfTime, Session
from hasten.search.space import free, quantized, with_more_effort
from hasten.search.trial import Trial, merit_text

# A runtime that is this much slower than the best at the same thing does not win by better rounding.
_NEAR = 1.3
# Float programs of different compilers are within this factor of each other; what is still further behind an integer
# program cannot win, and costs up to a minute to compile.
_FLOATS_DIFFER = 2.0
# After this share of a deadline the slow compilers have had their time; the rest is for training.
_SHARE = 0.15
# Rounding has lost something that counts when it took this share of the accepted drop, and nothing where a certificate
# is as likely as this.
_COUNTS, _SURE = 0.5, 0.9


def post_training(session: Session, usable: Mapping[str, type[Target]]) -> None:
    """Try every target at every precision, quantize at every placement, and round with more effort where that counts.

    Rounding to the nearest comes first: it takes a fraction of the time, and shows which runtimes are worth the rest.

    Raises:
        OutOfTime: The deadline is near.
    """
    limits = session.budget.limits
    tiers = [[*free(tier, limits), *quantized(tier, limits)] for tier in _tiers(usable)]
    session.listener.begin(sum(map(len, tiers)))
    trials = session.attempt_all(_in_time(session, map(Attempt, tiers[0])))
    for tier in tiers[1:]:
        # Integers first: where they are fast, the float programs of slow compilers need not be made.
        ordered = sorted(tier, key=_is_float)
        worth = (Attempt(recipe) for recipe in ordered if _may_win(session, recipe))
        trials += session.attempt_all(_in_time(session, worth))
    plain = [trial for trial in trials if trial.recipe.steps and trial.measured]
    if not plain:
        return
    # What is judged of one device says nothing about another, so only timed targets are compared.
    names = {name_of(trial.recipe.target) for trial in plain} if session.budget.limits else {""}
    groups = [[t for t in plain if not name or name_of(t.recipe.target) == name] for name in sorted(names)]
    better = itertools.chain(*(_worth_more_effort(session, group) for group in groups))
    session.attempt_all(_in_time(session, better))


def _in_time(session: Session, attempts: Iterable[Attempt]) -> Iterator[Attempt]:
    """Those that the deadline leaves time for: after one that is too long a shorter one may still fit.

    Raises:
        OutOfTime: No time is left for any.
    """
    for attempt in attempts:
        if session.is_known(attempt.recipe):
            yield attempt
            continue
        expected_s, left_s = session.expected_s(attempt), session.left_s()
        if left_s <= 0:
            raise OutOfTime
        if expected_s <= left_s:
            yield attempt
        else:
            why = f"it would take {expected_s:.0f} s, and {left_s:.0f} s are left"
            session.decide(Trial(0, attempt.recipe).name, False, why, cost_s=expected_s)


def _tiers(usable: Mapping[str, type[Target]]) -> list[dict[str, type[Target]]]:
    """Runtimes of this process, then those with an environment of their own, then compilers to machine code.

    The first compile in seconds, the others in up to a minute: a deadline must not pass before the first are quantized.
    """

    def tier(part: type[Target]) -> int:
        return 2 if getattr(part, "native_code", False) else int(bool(getattr(part, "stack", "")))

    return [{name: part for name, part in usable.items() if tier(part) == n} for n in range(3)]


def _may_win(session: Session, recipe: Recipe) -> bool:
    """Whether a recipe for a slow compiler is worth its time, where time is limited."""
    if session.budget.minutes is None or session.budget.limits:
        return True
    minutes, name = session.budget.minutes, Trial(0, recipe).name
    spent = session.journal.once("plan", f"time for {name}", lambda: {"spent_s": session.journal.elapsed_s})["spent_s"]
    if spent > _SHARE * 60 * minutes:
        session.decide(name, False, f"{spent:.0f} s are spent, and the rest is for training")
        return False
    floats = max((t.merit for t in session.trials if t.measured and _is_float(t.recipe)), default=0.0)
    best = session.best.merit if session.best else 0.0
    if session.budget.objective == "latency" and _is_float(recipe) and best > _FLOATS_DIFFER * floats:
        why = f"float programs reach {merit_text(floats, session.budget)}, integers {merit_text(best, session.budget)}"
        session.decide(name, False, why)
        return False
    return True


def _is_float(recipe: Recipe) -> bool:
    return not recipe.steps and options_of(recipe.target).get("precision") != "int8"


def _worth_more_effort(session: Session, plain: list[Trial]) -> Iterator[Attempt]:
    """Better rounding of those that are near the fastest and may fail their certificate, best first."""
    graph, _ = session.bench.graphs.after((), {})
    fastest = max(trial.merit for trial in plain)
    for trial in sorted(plain, key=lambda t: -t.merit):
        if (likely := chance(trial, session.budget, session.counts)) >= _SURE:
            why = f"plain rounding drops {trial.drop:+.4f}, and will be certified with a chance of {likely:.0%}"
            session.decide(f"better rounding of {trial.name}", False, why)
            continue
        lost = trial.drop > _COUNTS * session.budget.max_drop
        for recipe in with_more_effort(trial.recipe, graph, lost):
            name = Trial(0, recipe).name
            if trial.merit * _NEAR < fastest:
                best, own = merit_text(fastest, session.budget), merit_text(trial.merit, session.budget)
                why = f"at plain rounding it is {own}, and the best is {best}"
                session.decide(name, False, why)
                continue
            gain = trial.merit / max(session.best.merit if session.best else 1.0, 1e-9)
            why = f"plain rounding drops {trial.drop:+.4f}; it may drop less this way"
            session.decide(name, True, why, gain, session.trial_s(recipe))
            yield Attempt(recipe)
