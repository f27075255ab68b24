"""Judge outputs by the workload's own test: a value with an interval, and the drop with its upper bound."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from hasten.measure.certificate import upper_bound
from hasten_bench import job
from hasten_bench.workloads import Workload

LEVEL = 0.05
_RESAMPLES = 2000


@dataclass(frozen=True)
class Quality:
    """How good a program's outputs are.

    Attributes:
        metric: "top1", "spearman", or "cosine" (to the original's outputs, where weights are random).
        value, low, high: The metric with its 95% interval.
        drop: The original's value minus this one.
        drop_upper: One-sided 95% upper bound of the true drop; None where weights are random.
        keeps: `drop` is within the workload's `max_drop`; always true where weights are random.
        proven: `drop_upper` is within it.
        rows: Test rows.
    """

    metric: str
    value: float
    low: float
    high: float
    drop: float
    drop_upper: float | None
    keeps: bool
    proven: bool
    rows: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def judge(workload: Workload, outputs: np.ndarray, original: np.ndarray, target: np.ndarray | None) -> Quality:
    """Quality of `outputs` [n, ...] beside the original's [n, ...].

    Args:
        workload: Says the metric and the accepted drop.
        outputs: Of the program.
        original: Of the original network on the same rows.
        target: Labels [n] for "top1", human scores [n / 2] for "spearman", None for random weights.
    """
    if not workload.trained or target is None:
        value = float(job.scores("cosine", outputs, original).mean())
        return Quality("cosine", value, value, value, 1 - value, None, True, False, len(outputs))
    if workload.test_metric == "top1":
        own, base = (job.scores("top1", x, target) for x in (outputs, original))
        low, high = stats.binomtest(int(own.sum()), len(own)).proportion_ci(method="wilson")
        upper, _ = upper_bound(base, own, LEVEL)
        return _quality(workload, own.mean(), (low, high), base.mean() - own.mean(), upper, len(own))
    own, base = (pair_cosines(x) for x in (outputs, original))
    interval, upper = _bootstrap(lambda rows: _spearman(own[rows], target[rows]),
                                 lambda rows: _spearman(base[rows], target[rows]), len(target))  # fmt: skip
    value = _spearman(own, target)
    return _quality(workload, value, interval, _spearman(base, target) - value, upper, len(target))


def pair_cosines(vectors: np.ndarray) -> np.ndarray:
    """Cosine of rows 2k and 2k + 1, [n / 2]."""
    return job.scores("cosine", vectors[::2], vectors[1::2])


def _quality(
    workload: Workload, value: float, interval: tuple[float, float], drop: float, upper: float, rows: int
) -> Quality:
    limit = workload.max_drop
    low, high = (float(x) for x in interval)
    return Quality(
        workload.test_metric, float(value), low, high, float(drop), float(upper), bool(drop <= limit),
        bool(upper <= limit), rows,
    )  # fmt: skip


def _spearman(cosines: np.ndarray, human: np.ndarray) -> float:
    return float(stats.spearmanr(cosines, human).statistic)


def _bootstrap(
    own: Callable[[np.ndarray], float], base: Callable[[np.ndarray], float], count: int
) -> tuple[tuple[float, float], float]:
    """95% interval of `own` and upper 95% bound of the paired `base - own`, over resampled rows."""
    rng = np.random.default_rng(0)
    samples = [rng.integers(0, count, count) for _ in range(_RESAMPLES // 4)]
    values = np.array([own(rows) for rows in samples])
    drops = np.array([base(rows) for rows in samples]) - values
    low, high = np.percentile(values, [2.5, 97.5])
    return (float(low), float(high)), float(np.percentile(drops, 100 * (1 - LEVEL)))
