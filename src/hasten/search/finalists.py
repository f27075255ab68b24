"""Who goes to the finals: the places are given so that what is certified is expected to be worth the most."""

import math
from itertools import combinations
from statistics import NormalDist
from typing import NamedTuple

from hasten.recipe import name_of
from hasten.search.graphs import trains
from hasten.search.trial import Trial, contenders
from hasten.task import Budget

_SAFE_SHARE = 0.1
_MOST_CONSIDERED = 8
# How likely something should ship, where the finalists can be chosen so.
_SOMETHING = 0.95
_NOISELESS = 1e-12


class Counts(NamedTuple):
    """Samples of the search part and of the certifying part; the noise of one whose score changed.

    Of right and wrong, where few change, one more is as likely: it is added to what was seen. Of other scores it is 0.
    """

    searched: int
    certified: int
    one: float


def choose_finalists(trials: list[Trial], budget: Budget, counts: Counts) -> list[Trial]:
    """The most promising trials within the budget on the search part.

    A trial that is a little faster, but would hardly be certified, must not take the place of one that would: the
    places, of which the last has the smallest share of the error, are given so that the best that passes is expected to
    be worth the most, among those choices of which one will pass with a chance of 95%, if there are any.

    Args:
        trials: The original first.
        budget: What was asked for.
        counts: Of the scores that tell.
    """
    within = sorted(contenders(trials, budget), key=lambda t: -t.merit)
    devices = {name_of(t.recipe.target) for t in within} if budget.limits else set()
    if len(devices) > 1:
        # Room under the limits of one device says nothing about another: the best of each goes first.
        firsts = [next(t for t in within if name_of(t.recipe.target) == name) for name in sorted(devices)]
        return [*firsts, *(t for t in within if t not in firsts)][: budget.finalists]
    return _most_expected(within, budget, counts) if within else []


def _most_expected(within: list[Trial], budget: Budget, counts: Counts) -> list[Trial]:
    """The places that are expected to be worth the most: anything certified one, every e times faster one more.

    Args:
        within: Trials that may be certified, at least one.
        budget: What was asked for.
        counts: Of the scores that tell.
    """
    least = min(t.merit for t in within)
    worth = {t.number: 1 + math.log(t.merit / least) for t in within}
    places = min(budget.finalists, len(within))
    shares = error_shares(places)
    chances = {(t.number, share): chance(t, budget, counts, share) for t in within for share in shares}

    def alone(t: Trial) -> float:
        return worth[t.number] * max(chances[t.number, share] for share in shares)

    def outlook(order: tuple[Trial, ...]) -> tuple[float, float]:
        """What an order is expected to be worth, and how likely none of it passes."""
        total, none_better = 0.0, 1.0
        placed = sorted(zip(order, shares, strict=True), key=lambda pair: -pair[0].merit)
        for t, share in placed:
            total += none_better * chances[t.number, share] * worth[t.number]
            none_better *= 1 - chances[t.number, share]
        return total, none_better

    near = sorted(within, key=lambda t: -alone(t))[: max(_MOST_CONSIDERED, places)]
    # All places but the last have equal shares.
    orders: list[tuple[Trial, ...]] = [
        (*rest, last) for last in near for rest in combinations([t for t in near if t != last], places - 1)
    ]
    found = [(order, *outlook(order)) for order in orders]
    ships = [entry for entry in found if entry[2] <= 1 - _SOMETHING]
    best, *_ = max(ships or found, key=lambda entry: entry[1])
    return list(best)


def noise_of(trial: Trial, counts: Counts) -> float:
    """Variance of what a score adds to a trial's drop; above 0."""
    return max(trial.noise + counts.one, _NOISELESS)


def chance(trial: Trial, budget: Budget, counts: Counts, share: float | None = None) -> float:
    """How likely a trial is to be certified, predicted from the search part.

    The certifying part's drop varies around that of the search part by the scores that changed, and its bound lies
    above it by their noise (both normal, close enough to choose by). A gain on the search part is luck where
    nothing was trained: rounding alone makes no network better.

    Args:
        trial: With its noise.
        budget: What was asked for.
        counts: Of the scores that tell.
        share: Of the certificates' error that it gets; default: that of the first finalist.
    """
    noise = noise_of(trial, counts)
    error = (1 - budget.confidence) * (error_shares(budget.finalists)[0] if share is None else share)
    margin = NormalDist().inv_cdf(1 - error) * math.sqrt(noise / counts.certified)
    unsure = math.sqrt(noise / counts.certified + noise / counts.searched)
    trained = any(map(trains, trial.recipe.steps))
    drop = trial.drop if trained else max(trial.drop, 0.0)
    return NormalDist().cdf((budget.max_drop - drop - margin) / unsure)


def error_shares(finalists: int) -> list[float]:
    """How the certificates' error is divided (weighted Bonferroni): most for the fast ones, a little for the safe last.

    A finalist that changes hardly any prediction needs little; a fast one that changes some needs all it can get.
    """
    if finalists < 2:
        return [1.0] * finalists
    return [(1 - _SAFE_SHARE) / (finalists - 1)] * (finalists - 1) + [_SAFE_SHARE]
