"""Who goes to the finals, in which order: so that what is certified is expected to be worth the most."""

import functools
import math
from collections.abc import Sequence
from itertools import combinations
from statistics import NormalDist
from typing import NamedTuple

from hasten.recipe import name_of
from hasten.search.graphs import trains
from hasten.search.trial import Trial, contenders
from hasten.task import Budget

_MOST_CONSIDERED = 8
# How likely something should ship, where the finalists can be chosen so.
_SOMETHING = 0.95
# Standard deviation of what training makes a network better by, in budgets.
_USUAL_GAIN = 0.5
_NOISELESS = 1e-12


class Counts(NamedTuple):
    """Samples of the search part and of the certifying part; the noise of one whose score changed.

    Of right and wrong, where few change, one more is as likely: it is added to what was seen. Of other scores it is 0.
    """

    searched: int
    certified: int
    one: float


def choose_finalists(trials: list[Trial], budget: Budget, counts: Counts) -> list[Trial]:
    """Those of the trials within the budget on the search part that are tested, in the order they are tested in.

    A sequence goes from safe to bold (see `certify_in_order`). A trial that is a little faster, but would hardly be
    certified, must not take the place of one that would.

    Args:
        trials: The original first.
        budget: What was asked for.
        counts: Of the scores that tell.
    """
    apart = sequences(contenders(trials, budget), budget)
    found: list[Trial] = []
    for index, within in enumerate(apart):
        places = (budget.finalists + len(apart) - 1 - index) // len(apart)
        found += _most_expected(within, places, budget, counts, 1 / len(apart))
    return found


def sequences(trials: Sequence[Trial], budget: Budget) -> list[list[Trial]]:
    """The trials as they are tested together, in the order they come in; each sequence has an equal share of the error.

    They are one, except on several judged targets: room under the limits of one says nothing about another.
    """

    def judged_on(t: Trial) -> str:
        return name_of(t.recipe.target) if budget.limits else ""

    return [[t for t in trials if judged_on(t) == name] for name in sorted(set(map(judged_on, trials)))]


def _most_expected(within: list[Trial], places: int, budget: Budget, counts: Counts, share: float) -> list[Trial]:
    """The sequence that is expected to be worth the most: anything certified one, every e times faster one more.

    If there are any, of those of which something passes with a chance of 95%.

    Args:
        within: Trials that may be certified, at least one.
        places: The most that may be tested.
        budget: What was asked for.
        counts: Of the scores that tell.
        share: Of the certificates' error.
    """
    least = min(t.merit for t in within)
    worth = {t.number: 1 + math.log(t.merit / least) for t in within}
    by_number = {t.number: t for t in within}

    @functools.cache
    def passes(number: int, of_error: float) -> float:
        return chance(by_number[number], budget, counts, of_error)

    def outlook(order: tuple[Trial, ...], own: float, handed: float = 0.0) -> tuple[float, float]:
        """What the rest of an order adds, and how likely none of it passes; the last that passed is the best."""
        if not order:
            return 0.0, 1.0
        likely = passes(order[0].number, handed + own)
        then, none_then = outlook(order[1:], own, handed + own)
        else_, none_else = outlook(order[1:], own)
        # Only what no bolder one replaces is of worth.
        added = likely * (then + none_then * worth[order[0].number]) + (1 - likely) * else_
        return added, (1 - likely) * none_else

    ranked = sorted(within, key=lambda t: -passes(t.number, share) * worth[t.number])
    # What surely passes may be worth little by itself, and is what a sequence begins with.
    surest = max(within, key=lambda t: passes(t.number, share / places))
    considered = {t.number for t in (*ranked[:_MOST_CONSIDERED], surest)}
    near = sorted((t for t in within if t.number in considered), key=lambda t: t.merit)
    orders: list[tuple[Trial, ...]] = [
        order for count in range(1, min(places, len(near)) + 1) for order in combinations(near, count)
    ]
    found = [(order, *outlook(order, share / len(order))) for order in orders]
    ships = [entry for entry in found if entry[2] <= 1 - _SOMETHING]
    best, *_ = max(ships or found, key=lambda entry: entry[1])
    return list(best)


def noise_of(trial: Trial, counts: Counts) -> float:
    """Variance of what a score adds to a trial's drop; above 0."""
    return max(trial.noise + counts.one, _NOISELESS)


def chance(trial: Trial, budget: Budget, counts: Counts, share: float = 1.0) -> float:
    """How likely a trial is to be certified, predicted from the search part.

    The certifying part's drop varies around that of the search part by the scores that changed, and its bound lies
    above it by their noise (both normal, close enough to choose by). A gain on the search part is luck where
    nothing was trained: rounding alone makes no network better. Where something was, it is taken for a draw from gains
    that are seldom more than the budget, seen through the noise of the search part.

    Args:
        trial: With its noise.
        budget: What was asked for.
        counts: Of the scores that tell.
        share: Of the certificates' error that its test has.
    """
    noise = noise_of(trial, counts)
    margin = NormalDist().inv_cdf(1 - (1 - budget.confidence) * share) * math.sqrt(noise / counts.certified)
    unsure = math.sqrt(noise / counts.certified + noise / counts.searched)
    usual = (budget.max_drop * _USUAL_GAIN) ** 2 if any(map(trains, trial.recipe.steps)) else 0.0
    believed = usual / (usual + noise / counts.searched)
    drop = trial.drop * (believed if trial.drop < 0 else 1.0)
    return NormalDist().cdf((budget.max_drop - drop - margin) / unsure)
