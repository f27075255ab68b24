"""The end of a run: choose finalists on the search part, time them again, certify them on the other part."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from statistics import NormalDist
from typing import Any

from hasten.errors import HastenError, Unsupported
from hasten.measure.certificate import Certificate, certify
from hasten.measure.latency import Latency, Throughput, best_throughput, compare
from hasten.measure.worker import ProgramFailed, Worker
from hasten.recipe import name_of
from hasten.search.bench import Bench
from hasten.search.trial import Trial, contenders
from hasten.task import Budget

_FINAL_TURNS = 15
_SAFE_SHARE = 0.1
# Of a deadline, what throughput may take where it is not what was asked for.
_THROUGHPUT_SHARE = 0.05
_MOST_CONSIDERED = 8


@dataclass(frozen=True)
class Final:
    """A finalist with its careful timing, its throughput, and its certificate; what is judged is not timed."""

    trial: Trial
    latency: Latency | None
    throughput: Throughput | None
    certificate: Certificate

    def merit(self, objective: str) -> float:
        """Times better than the original in the objective; of what is judged, its room under the limits."""
        if self.latency is None or self.throughput is None:
            return self.trial.merit
        found = {"latency": self.latency.ratio, "throughput": self.throughput.ratio}
        return found.get(objective, self.trial.merit)

    def passed(self, budget: Budget) -> bool:
        """Whether it is certified and, timed carefully, within the limits."""
        most_ms = budget.max_latency_ms
        fast = most_ms is None or (self.latency is not None and self.latency.median_ms <= most_ms)
        return self.certificate.passed and fast

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        parts = {name: getattr(self, name) for name in ("latency", "throughput", "certificate")}
        return {"number": self.trial.number} | {name: x.to_json() if x else None for name, x in parts.items()}


@dataclass(frozen=True)
class Finals:
    """The finalists, and the original timed with them; by number, why a finalist failed only here."""

    finals: list[Final]
    latency: Latency
    throughput: Throughput
    failed: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        original = {"latency": self.latency.to_json(), "throughput": self.throughput.to_json()}
        return {"original": original, "finals": [final.to_json() for final in self.finals], "failed": self.failed}

    @classmethod
    def from_json(cls, document: dict[str, Any], trials: list[Trial]) -> "Finals":
        """What `to_json` wrote."""
        by_number = {trial.number: trial for trial in trials}
        finals = [
            Final(
                by_number[f["number"]],
                Latency(**f["latency"]) if f["latency"] else None,
                Throughput(**f["throughput"]) if f["throughput"] else None,
                Certificate(**f["certificate"]),
            )
            for f in document["finals"]
        ]
        original = document["original"]
        return cls(finals, Latency(**original["latency"]), Throughput(**original["throughput"]), document["failed"])


def choose_finalists(trials: list[Trial], budget: Budget, counts: tuple[int, int] | None = None) -> list[Trial]:
    """The most promising trials within the budget on the search part, and last among them one that is safe.

    A trial that is a little faster, but would hardly be certified, must not take the place of one that would. Where the
    chance of a certificate can be predicted, the places, of which the last has the smallest share of the error, are
    given so that the best that passes is expected to be worth the most. Else the last goes to the best of those that
    change the fewest predictions, so that a narrow failure of the best still leaves something certified.

    Args:
        trials: The original first.
        budget: What was asked for.
        counts: Samples of the search part and of the certifying part, where every score is 0 or 1. None: others, whose
            chance of a certificate is not predicted.
    """
    within = sorted(contenders(trials, budget), key=lambda t: -t.merit)
    devices = {name_of(t.recipe.target) for t in within} if budget.limits else set()
    if len(devices) > 1:
        # Room under the limits of one device says nothing about another: the best of each goes first.
        firsts = [next(t for t in within if name_of(t.recipe.target) == name) for name in sorted(devices)]
        return [*firsts, *(t for t in within if t not in firsts)][: budget.finalists]
    if counts is not None and within:
        return _most_expected(within, budget, counts)
    chosen = within[: budget.finalists]
    if len(within) > len(chosen) and len(chosen) > 1:
        safest = min(within, key=lambda t: (t.changed, -t.merit))
        if safest.changed < min(t.changed for t in chosen):
            chosen[-1] = safest
    return chosen


def _most_expected(within: list[Trial], budget: Budget, counts: tuple[int, int]) -> list[Trial]:
    """The places that are expected to be worth the most: anything certified one, every e times faster one more.

    Args:
        within: Trials that may be certified, at least one.
        budget: What was asked for.
        counts: Samples of the search part and of the certifying part.
    """
    least = min(t.merit for t in within)
    worth = {t.number: 1 + math.log(t.merit / least) for t in within}
    places = min(budget.finalists, len(within))
    shares = error_shares(places)
    chances = {(t.number, share): chance(t, budget, *counts, share) for t in within for share in shares}

    def alone(t: Trial) -> float:
        return worth[t.number] * max(chances[t.number, share] for share in shares)

    def expected(order: tuple[Trial, ...]) -> float:
        total, none_better = 0.0, 1.0
        placed = sorted(zip(order, shares, strict=True), key=lambda pair: -pair[0].merit)
        for t, share in placed:
            total += none_better * chances[t.number, share] * worth[t.number]
            none_better *= 1 - chances[t.number, share]
        return total

    near = sorted(within, key=lambda t: -alone(t))[: max(_MOST_CONSIDERED, places)]
    # All places but the last have equal shares.
    orders: list[tuple[Trial, ...]] = [
        (*rest, last) for last in near for rest in combinations([t for t in near if t != last], places - 1)
    ]
    best = max(orders, key=expected)
    return list(best)


def chance(trial: Trial, budget: Budget, searched: int, certified: int, share: float | None = None) -> float:
    """How likely a trial is to be certified, predicted from the search part.

    The certifying part's drop varies around that of the search part by the predictions that changed, and its bound lies
    above it by their noise (both normal, which is close enough to choose by).

    Args:
        trial: Has 0/1 scores.
        budget: What was asked for.
        searched: Samples of the search part.
        certified: Samples of the certifying part.
        share: Of the certificates' error that it gets; default: that of the first finalist.
    """
    changed = max(trial.changed, 1 / searched)
    error = (1 - budget.confidence) * (error_shares(budget.finalists)[0] if share is None else share)
    margin = NormalDist().inv_cdf(1 - error) * math.sqrt(changed / certified)
    unsure = math.sqrt(changed / certified + changed / searched)
    return NormalDist().cdf((budget.max_drop - trial.drop - margin) / unsure)


def run_finals(bench: Bench, finalists: list[Trial], budget: Budget) -> Finals:
    """Time all finalists and the original in turns, then certify each; what is judged is certified alone.

    A finalist whose program fails here is left out, and the others are timed again. Its share of the certificates'
    error is not given to them: that would be choosing after the certifying part was seen.
    """
    shares = dict(zip([trial.number for trial in finalists], error_shares(len(finalists)), strict=True))
    failed: dict[str, str] = {}
    while True:
        standing = [trial for trial in finalists if str(trial.number) not in failed]
        bench.revive()
        with contextlib.ExitStack() as stack:
            try:
                return _round(bench, standing, budget, shares, stack, failed)
            except _FinalistFailed as error:
                failed[str(error.number)] = str(error)


class _FinalistFailed(Exception):
    def __init__(self, number: int, error: HastenError) -> None:
        super().__init__(str(error))
        self.number = number


def _round(
    bench: Bench,
    finalists: list[Trial],
    budget: Budget,
    shares: Mapping[int, float],
    stack: contextlib.ExitStack,
    failed: dict[str, str],
) -> Finals:
    inputs, sizes, workers = bench.holdout.inputs, bench.sizes, dict[str, Worker]()
    for trial in finalists:
        with _blamed_on(trial):
            workers[str(trial.number)] = stack.enter_context(bench.worker(trial.number, trial.recipe))
    timed = {"original": bench.baseline} | ({} if bench.limits else workers)
    try:
        latencies = compare(timed, "original", inputs, batch=sizes.latency, turns=_FINAL_TURNS)
        throughputs = best_throughput(
            timed,
            "original",
            inputs,
            smallest=sizes.latency,
            largest=sizes.largest,
            limit_s=throughput_limit_s(budget),
        )
    except ProgramFailed as error:
        broken = [trial for trial in finalists if workers[str(trial.number)].failure]
        if not broken:
            raise
        raise _FinalistFailed(broken[0].number, error) from error
    finals = []
    for trial in finalists:
        name = str(trial.number)
        with _blamed_on(trial):
            found = _certify(bench, trial, workers[name], budget, len(shares), shares[trial.number])
            finals.append(Final(trial, latencies.get(name), throughputs.get(name), found))
    return Finals(finals, latencies["original"], throughputs["original"], failed)


def throughput_limit_s(budget: Budget) -> float:
    """Longest time for the throughput of the finalists, which is only reported unless it is the objective."""
    if budget.minutes is None or budget.objective == "throughput":
        return float("inf")
    return _THROUGHPUT_SHARE * 60 * budget.minutes


@contextlib.contextmanager
def _blamed_on(trial: Trial) -> Iterator[None]:
    try:
        yield
    except (ProgramFailed, Unsupported) as error:
        raise _FinalistFailed(trial.number, error) from error


def error_shares(finalists: int) -> list[float]:
    """How the certificates' error is divided (weighted Bonferroni): most for the fast ones, a little for the safe last.

    A finalist that changes hardly any prediction needs little; a fast one that changes some needs all it can get.
    """
    if finalists < 2:
        return [1.0] * finalists
    return [(1 - _SAFE_SHARE) / (finalists - 1)] * (finalists - 1) + [_SAFE_SHARE]


def _certify(bench: Bench, trial: Trial, worker: Worker, budget: Budget, finalists: int, share: float) -> Certificate:
    rows = bench.holdout.certify
    return certify(
        bench.baseline_certify,
        bench.score(trial.number, worker, rows),
        max_drop=budget.max_drop,
        confidence=budget.confidence,
        finalists=finalists,
        share=share,
        indices=rows,
        target="original" if bench.unlabelled else "labels",
        seed=bench.holdout.seed,
    )
