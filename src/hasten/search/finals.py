"""The end of a run: finalists are timed again, and certified on the part of the holdout that no choice has seen."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hasten.errors import HastenError
from hasten.measure.certificate import Certificate, certify_in_order
from hasten.measure.latency import Latency, Throughput, best_throughput
from hasten.measure.worker import ProgramFailed, Worker
from hasten.search.bench import Bench
from hasten.search.finalists import sequences
from hasten.search.trial import Trial
from hasten.task import Budget

_FINAL_TURNS = 15
# Of a deadline, what throughput may take where it is not what was asked for.
_THROUGHPUT_SHARE = 0.05


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


def run_finals(bench: Bench, finalists: list[Trial], budget: Budget) -> Finals:
    """Time all finalists and the original in turns, then certify each; what is judged is certified alone.

    They are tested in the order given: see `certify_in_order`. A finalist whose program fails here is left out, and the
    others are timed again. Its share of the certificates' error is not given to them.
    """
    failed: dict[str, str] = {}
    while True:
        bench.revive()
        with contextlib.ExitStack() as stack:
            try:
                return _round(bench, finalists, budget, stack, failed)
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
    stack: contextlib.ExitStack,
    failed: dict[str, str],
) -> Finals:
    inputs, sizes, workers = bench.holdout.inputs, bench.sizes, dict[str, Worker]()
    standing = [trial for trial in finalists if str(trial.number) not in failed]
    for trial in standing:
        with _blamed_on(trial):
            workers[str(trial.number)] = stack.enter_context(bench.worker(trial.number, trial.recipe))
    timed = {"original": bench.baseline} | ({} if bench.limits else workers)
    try:
        latencies = bench.compare(timed, "original", _FINAL_TURNS)
        throughputs = best_throughput(
            timed,
            "original",
            inputs,
            smallest=sizes.latency,
            largest=sizes.largest,
            limit_s=throughput_limit_s(budget),
        )
    except ProgramFailed as error:
        broken = [trial for trial in standing if workers[str(trial.number)].failure]
        if not broken:
            raise
        raise _FinalistFailed(broken[0].number, error) from error
    certificates = _certify_all(bench, finalists, workers, budget)
    finals = [
        Final(t, latencies.get(str(t.number)), throughputs.get(str(t.number)), certificates[t.number]) for t in standing
    ]
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
    except HastenError as error:
        raise _FinalistFailed(trial.number, error) from error


def _certify_all(
    bench: Bench, finalists: Sequence[Trial], workers: Mapping[str, Worker], budget: Budget
) -> dict[int, Certificate]:
    """The certificates, by the number of the trial, of those that run; the others leave their shares to nobody."""
    rows = bench.holdout.certify
    scores: dict[int, np.ndarray] = {}
    for trial in finalists:
        if (worker := workers.get(str(trial.number))) is not None:
            with _blamed_on(trial):
                scores[trial.number] = bench.score(trial.number, worker, rows)
    found: dict[int, Certificate] = {}
    apart = sequences(finalists, budget)
    for chosen in apart:
        tested = [trial.number for trial in chosen if trial.number in scores]
        made = certify_in_order(
            bench.baseline_certify,
            [scores[number] for number in tested],
            share=1 / len(apart),
            among=len(chosen),
            max_drop=budget.max_drop,
            confidence=budget.confidence,
            finalists=len(finalists),
            indices=rows,
            target="original" if bench.unlabelled else "labels",
            seed=bench.holdout.seed,
            content=bench.content_sha256,
        )
        found |= dict(zip(tested, made, strict=True))
    return found
