"""How a race is cut to the time there is: entrants, rungs, training steps; and who goes on.

Successive halving: Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization". Every rung trains the better half for twice as long, on from where it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeVar

from hasten.search.trial import Trial

_ENTRANTS = (8, 4, 2, 1)
_FEWEST_STEPS = 20
_MOST_EPOCHS = 3
# Of the drop that is left, what twice the training leaves; and how unsure that is, relative to the drop.
_LEFT_AFTER_RUNG = 0.6
_UNSURE = 0.15

T = TypeVar("T")


@dataclass(frozen=True)
class Heat:
    """A race.

    Attributes:
        entrants: Architectures at the start; 0: there is no time for any.
        rungs: How often the field is trained, and halved in between.
        steps: Training steps of the first rung; every next has twice as many.
        cost_s: What it is expected to take.
    """

    entrants: int
    rungs: int
    steps: int
    cost_s: float


def plan_heat(left_s: float, step_s: float, overhead_s: float, per_epoch: int, available: int) -> Heat:
    """The widest race that fits, in which everyone gets a fair first training: an epoch, or a few dozen steps.

    Args:
        left_s: Time for it.
        step_s: One training step.
        overhead_s: What a trial takes beside them: setting up, rounding, compiling, measuring.
        per_epoch: Training steps per epoch.
        available: Architectures to choose from.
    """
    fair = min(max(per_epoch, _FEWEST_STEPS), 2 * _FEWEST_STEPS)
    for entrants in _ENTRANTS:
        if entrants > available:
            continue
        rungs = int(math.log2(entrants)) + 1
        trials = 2 * entrants - 1
        steps = int((left_s - trials * overhead_s) / (entrants * rungs * step_s))
        if steps >= fair:
            # A lone entrant gets in one go what the winner of a race would.
            most = _MOST_EPOCHS * max(per_epoch, _FEWEST_STEPS) * (4 if entrants == 1 else 1)
            steps = min(steps, most)
            return Heat(entrants, rungs, steps, entrants * rungs * steps * step_s + trials * overhead_s)
    return Heat(0, 0, 0, 0.0)


def promise(trial: Trial, best: float, max_drop: float, samples: int, rungs_left: int) -> float:
    """Expected gain: the chance of keeping the accuracy at the end, times the log of how much better it would be.

    Args:
        trial: A recovery so far.
        best: Merit to beat.
        max_drop: The budget.
        samples: Of the search part, whose noise the drop has.
        rungs_left: Trainings that are still to come.
    """
    if not trial.measured:
        return 0.0
    expected = trial.drop * _LEFT_AFTER_RUNG**rungs_left if trial.drop > 0 else trial.drop
    noise = max(trial.changed, 1 / samples) / samples
    unsure = math.sqrt(noise + (_UNSURE * trial.drop if rungs_left else 0.0) ** 2)
    return NormalDist().cdf((max_drop - expected) / unsure) * max(math.log(trial.merit / best), 0.01)


def spread(merits: Sequence[tuple[float, T]], best: float, count: int) -> list[T]:
    """`count` of the candidates, from a little better than `best` upwards in equal ratios.

    Args:
        merits: Candidates with their merit, all above `best`.
        best: Merit to beat.
        count: How many, at most.
    """
    ranked = sorted(merits, key=lambda pair: pair[0])
    top = ranked[-1][0]
    # The ambitious end is seldom within reach, so a small field stays in the lower half.
    ratio = (top / best) ** (1 / max(count, 2))
    chosen: list[tuple[float, T]] = []
    for place in range(1, count + 1):
        rest = [pair for pair in ranked if pair not in chosen]
        if rest:
            goal = best * ratio**place
            chosen.append(min(rest, key=lambda pair: abs(math.log(pair[0] / goal))))
    return [candidate for _, candidate in chosen]
