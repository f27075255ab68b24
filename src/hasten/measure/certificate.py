"""The certificate: a paired test, on data the search never saw, that the score drops by at most the budget.

Scores of 0 and 1 (right or wrong) get the exact unconditional non-inferiority test for paired proportions: Hsueh, Liu
and Chen, "Unconditional exact tests for equivalence or noninferiority for paired binary endpoints", Biometrics 57
(2001), which orders outcomes by the restricted-likelihood score statistic of Tango, "Equivalence test and confidence
interval for the difference in proportions for the paired-sample design", Statistics in Medicine 17 (1998), and takes
the worst case over the unknown discordance. It never exceeds its level, at any sample size.
Other scores, and what the parts of the set contribute to a metric of the whole (`measure.jackknife`), get a one-sided
BCa bootstrap bound of the mean paired drop (Efron 1987), by scipy.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy import optimize, stats

EXACT = "exact unconditional score test for paired proportions (Hsueh, Liu & Chen 2001; Tango 1998)"
BCA = "BCa bootstrap of the mean paired drop (Efron 1987)"
CONSTANT = "every paired drop is the same value"

_NUISANCE_POINTS = 40
_SMALLEST_BOOTSTRAP = 50


@dataclass(frozen=True)
class Certificate:
    """The outcome of one certifying test.

    Attributes:
        n: Paired samples.
        baseline_score, score: Mean scores, or the metric, of the original and of the candidate.
        drop: `baseline_score - score`; negative when the candidate is better.
        upper_bound: One-sided upper confidence bound of the true drop.
        max_drop: The budget.
        confidence: Of the bounds of all `finalists` together.
        error: Of this test: what it had of `1 - confidence`, see `certify_in_order`.
        finalists: How many candidates were to be tested on these samples.
        method: Which test.
        holdout_sha256: SHA-256 of the certifying sample indices.
        passed: `upper_bound <= max_drop`.
        target: "labels", or "original" when the score is the agreement with the original model.
        seed: Decided which samples certify.
    """

    n: int
    baseline_score: float
    score: float
    drop: float
    upper_bound: float
    max_drop: float
    confidence: float
    error: float
    finalists: int
    method: str
    holdout_sha256: str
    passed: bool
    target: str
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def certify(
    baseline: np.ndarray,
    candidate: np.ndarray,
    *,
    max_drop: float,
    confidence: float,
    indices: np.ndarray,
    finalists: int = 1,
    share: float = 1.0,
    target: str = "labels",
    seed: int = 0,
    content: str = "",
) -> Certificate:
    """Test that the mean of `candidate` is at most `max_drop` below that of `baseline`.

    Args:
        baseline: Scores of the original, of samples or of parts of the set.
        candidate: Scores of the candidate on the same samples or parts.
        max_drop: Largest accepted drop.
        confidence: Over all finalists together.
        indices: The indices of all samples, [n], for the record.
        finalists: Number of candidates tested on these samples.
        share: Of the error `1 - confidence`, for this test.
        target: What the scores compare with.
        seed: Decided which samples these are, for the record.
        content: Hash of the whole holdout's data, for the record.
    """
    level = (1 - confidence) * share
    upper, method = upper_bound(baseline, candidate, level)
    drop = float(np.mean(baseline) - np.mean(candidate))
    return Certificate(
        n=len(indices),
        baseline_score=float(np.mean(baseline)),
        score=float(np.mean(candidate)),
        drop=drop,
        upper_bound=upper,
        max_drop=max_drop,
        confidence=confidence,
        error=level,
        finalists=finalists,
        method=method,
        holdout_sha256=holdout_sha256(content, indices),
        passed=upper <= max_drop,
        target=target,
        seed=seed,
    )


def certify_in_order(
    baseline: np.ndarray, candidates: Sequence[np.ndarray], *, share: float = 1.0, among: int = 0, **about: Any
) -> list[Certificate]:
    """Test candidates one after the other; one that passes hands its share of the error on to the next.

    All have equal shares. The first bad one to pass did so with its own share and those of good ones, so that together
    they keep the error: the fallback procedure, Wiens 2003, "A fixed sequence Bonferroni procedure for testing multiple
    endpoints", Pharmaceutical Statistics 2. The bounds hold together (Strassburger and Bretz 2008, "Compatible
    simultaneous lower confidence bounds for the Holm procedure and other Bonferroni-based closed tests", Statistics in
    Medicine 27): where one did not pass, the budget for those that did; where all did, for each that of its own share.

    Args:
        baseline: As in `certify`.
        candidates: Scores of each, in an order that was fixed before these samples were seen.
        share: Of the family's error, for all of them.
        among: For how many the share was meant, if some were left out; 0: for these.
        about: The other arguments of `certify`.
    """
    own = share / (among or len(candidates) or 1)
    found: list[Certificate] = []
    handed = 0.0
    for candidate in candidates:
        found.append(certify(baseline, candidate, share=own + handed, **about))
        handed = own + handed if found[-1].passed else 0.0
    if not all(c.passed for c in found):
        return [replace(c, upper_bound=c.max_drop) if c.passed else c for c in found]
    alone = (
        upper_bound(baseline, scores, (1 - c.confidence) * own)[0] for scores, c in zip(candidates, found, strict=True)
    )
    return [replace(c, upper_bound=min(bound, c.max_drop)) for c, bound in zip(found, alone, strict=True)]


def holdout_sha256(content: str, indices: np.ndarray) -> str:
    """What says that two certificates are of the same samples: of the holdout's data and the certifying indices."""
    digest = hashlib.sha256(content.encode())
    digest.update(np.ascontiguousarray(indices, dtype="<i8").data)
    return digest.hexdigest()


def upper_bound(baseline: np.ndarray, candidate: np.ndarray, level: float) -> tuple[float, str]:
    """Upper confidence bound of the mean of `baseline - candidate` at error `level`, and the method's name."""
    if is_binary(baseline) and is_binary(candidate):
        lost = int(np.sum((baseline == 1) & (candidate == 0)))
        gained = int(np.sum((baseline == 0) & (candidate == 1)))
        return paired_proportions_bound(lost, gained, len(baseline), level), EXACT
    drops = np.asarray(baseline, dtype=np.float64) - np.asarray(candidate, dtype=np.float64)
    if np.ptp(drops) == 0:
        return float(drops[0]), CONSTANT
    if len(drops) < _SMALLEST_BOOTSTRAP:
        return float("inf"), BCA
    bound = stats.bootstrap(
        (drops,), np.mean, confidence_level=1 - level, alternative="less", method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval.high
    return float(bound), BCA


def is_binary(scores: np.ndarray) -> bool:
    """Whether every score is 0 or 1."""
    return bool(np.isin(scores, (0, 1)).all())


def paired_proportions_bound(lost: int, gained: int, n: int, level: float) -> float:
    """Smallest drop that `paired_proportions_p_value` rejects at `level`: an upper confidence bound of the true drop.

    Args:
        lost: Samples the baseline got right and the candidate wrong.
        gained: Samples the baseline got wrong and the candidate right.
        n: All samples.
        level: One-sided error.
    """
    low, high = (lost - gained) / n, 1.0 - 1e-9
    if paired_proportions_p_value(lost, gained, n, high) > level:
        return 1.0

    def excess(drop: float) -> float:
        return paired_proportions_p_value(lost, gained, n, drop) - level

    low = max(low, -1.0 + 1e-9)
    if excess(low) <= 0:
        return low
    return float(optimize.bisect(excess, low, high, xtol=1e-5)) + 1e-5


def paired_proportions_p_value(lost: int, gained: int, n: int, drop: float) -> float:
    """Exact p-value of "the true drop is at least `drop`", the supremum over the unknown rate of gains."""
    observed = float(_score(np.array([float(lost)]), np.array([float(gained)]), n, drop)[0])
    gains = np.arange(n + 1)
    # For each number of gains, the most losses that look at least as good as what was observed.
    limits = _largest_losses(observed, gains, n, drop)
    lowest, highest = max(0.0, -drop), (1 - drop) / 2
    # The supremum usually sits near the observed discordance; a fine grid there, a coarse one elsewhere.
    around = gained / n + np.linspace(-4, 4, _NUISANCE_POINTS) * np.sqrt(max(gained, 1)) / n
    rates = np.unique(
        np.clip(np.concatenate([around, np.linspace(lowest, highest, _NUISANCE_POINTS)]), lowest, highest)
    )
    return float(max(_tail(rate, rate + drop, gains, limits, n) for rate in rates))


def _tail(gain_rate: float, loss_rate: float, gains: np.ndarray, limits: np.ndarray, n: int) -> float:
    """P(losses <= limits[gains]) for trinomial (losses, gains) with the given rates."""
    weight = stats.binom.pmf(gains, n, gain_rate)
    likely = (weight > 1e-12) & (limits >= 0)
    if not likely.any():
        return 0.0
    rest = min(1.0, loss_rate / (1 - gain_rate)) if gain_rate < 1 else 1.0
    return float(np.sum(weight[likely] * stats.binom.cdf(limits[likely], n - gains[likely], rest)))


def _largest_losses(observed: float, gains: np.ndarray, n: int, drop: float) -> np.ndarray:
    """For each g in `gains` the largest l with score(l, g) <= observed, or -1; the score grows with l."""
    low, high = np.full(len(gains), -1.0), n - gains.astype(np.float64)
    while (high > low).any():
        middle = np.ceil((low + high) / 2)
        fits = _score(middle, gains, n, drop) <= observed + 1e-9
        low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
    return low


def _score(lost: np.ndarray, gained: np.ndarray, n: int, drop: float) -> np.ndarray:
    """Tango's score statistic of the hypothesis "true drop = `drop`"; small values speak for a smaller drop."""
    # Restricted maximum-likelihood estimate of the gain rate under the hypothesis (Tango 1998, section 2).
    a, b, c = 2.0 * n, -lost - gained + (2 * n - lost + gained) * drop, -gained * drop * (1 - drop)
    rate = (np.sqrt(np.maximum(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * rate + drop * (1 - drop))
    statistic: np.ndarray = (lost - gained - n * drop) / np.sqrt(np.maximum(variance, 1e-12))
    return statistic


def samples_needed(max_drop: float, level: float) -> int:
    """The fewest 0/1 samples that can certify `max_drop` at `level`: with no change of any prediction."""
    guess = int(np.ceil(np.log(level) / np.log1p(-max_drop))) if max_drop < 1 else 1
    while paired_proportions_p_value(0, 0, guess, max_drop) > level:
        guess += max(1, guess // 100)
    return guess
