"""The fastest so far timed once more, all in turns with each other, before training time is bet on who is ahead.

Every trial was timed beside the original alone. What disturbs a machine hits an interpreter of many small calls harder
than a compiled program, so a busy minute can double the ratio of whoever was timed in it; and the best of many noisy
ratios is too good on average.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hasten.measure.latency import Latency
from hasten.search.journal import Journal
from hasten.search.session import Session
from hasten.search.trial import Trial, contenders

_EVENT = "retimed"
_TURNS = 11
_MOST = 5


def retime(session: Session) -> None:
    """Time again, together, those whose interval reaches the best's; the trials carry the new latency from here on.

    The best is the pacemaker of all that follows.
    """
    if session.budget.limits or session.budget.objective != "latency":
        return
    rivals = doubtful(contenders(session.trials, session.budget))
    if rivals:
        session.listener.trying(f"timing the fastest {len(rivals)} again, in turns")
        times = session.once(
            _EVENT, "", lambda: {"latency": {n: x.to_json() for n, x in _together(session, rivals).items()}}
        )
        if "failure" in times:
            session.decide("timing the fastest again", False, times["failure"])
        session.trials[:] = with_new_times(session.trials, session.journal)
    session.bench.pace_by(session.best)


def with_new_times(trials: Sequence[Trial], journal: Journal) -> list[Trial]:
    """The trials with the latencies that `retime` put on record."""
    event = journal.find(_EVENT, "") or {}
    found: Mapping[str, dict[str, float]] = event.get("latency", {})
    return [
        replace(t, latency=Latency(**found[str(t.number)])) if str(t.number) in found else t  # type: ignore[arg-type]
        for t in trials
    ]


def doubtful(trials: Sequence[Trial]) -> list[Trial]:
    """Those that may be the fastest by their intervals, at most five; none where one alone may be."""
    timed = [(t, t.latency) for t in trials if t.latency is not None]
    surely = max((latency.ratio_low for _, latency in timed), default=0.0)
    near = sorted((x for x in timed if x[1].ratio_high >= surely), key=lambda x: -x[1].ratio_high)
    return [t for t, _ in near[:_MOST]] if len(near) > 1 else []


def _together(session: Session, rivals: Sequence[Trial]) -> dict[str, Latency]:
    bench = session.bench
    bench.revive()
    with contextlib.ExitStack() as stack:
        workers = {str(t.number): stack.enter_context(bench.worker(t.number, t.recipe)) for t in rivals}
        timed = {"original": bench.baseline} | workers
        found = bench.compare(timed, "original", _TURNS)
    return {name: found[name] for name in workers}
