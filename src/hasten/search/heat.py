"""How a race is cut to the time there is: entrants, rungs, training steps; and who goes on.

Successive halving: Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization". Every rung trains the better half for twice as long, on from where it is.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from hasten.search.finalists import Counts, noise_of
from hasten.search.trial import Trial

_ENTRANTS = (8, 4, 2, 1)
_FEWEST_STEPS = 20
_MOST_EPOCHS = 3
# What everyone in a field gets at first: so many epochs, within these bounds of steps. One long training of what is
# likely to recover beats several that all stop short.
_FAIR_EPOCHS, _FAIR_STEPS = 2, (60, 150)
_HALF_DAMAGES = (0.4, 0.25, 0.15625, 0.1)
# Of the drop that is left, what twice the training leaves; and how unsure that is, relative to the drop.
_LEFT_AFTER_RUNG = 0.6
_UNSURE = 0.15
# Chance of a certificate from which on something counts as won.
_RATHER = 0.5
# What may follow a race counts for so much of what is won now: the time for it is a guess.
_LATER = 0.8


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

    @property
    def all_steps(self) -> int:
        """Of what stays to the end: every rung has twice as many as the one before."""
        return self.steps * int(2**self.rungs - 1)


def plan_heat(left_s: float, step_s: float, overhead_s: float, per_epoch: int, available: int) -> Heat:
    """The widest race that fits, in which everyone gets a fair first training: two epochs, or some dozen steps.

    Args:
        left_s: Time for it.
        step_s: One training step.
        overhead_s: What a trial takes beside them: setting up, rounding, compiling, measuring.
        per_epoch: Training steps per epoch.
        available: Architectures to choose from.
    """
    alone = min(max(per_epoch, _FEWEST_STEPS), 2 * _FEWEST_STEPS)
    together = min(max(_FAIR_EPOCHS * per_epoch, _FAIR_STEPS[0]), _FAIR_STEPS[1])
    for entrants in _ENTRANTS:
        if entrants > available:
            continue
        fair = alone if entrants == 1 else together
        rungs = int(math.log2(entrants)) + 1
        trials = 2 * entrants - 1
        steps = int((left_s - trials * overhead_s) / (entrants * rungs * step_s))
        if steps >= fair:
            # A lone entrant gets in one go what the winner of a race would.
            most = _MOST_EPOCHS * max(per_epoch, _FEWEST_STEPS) * (4 if entrants == 1 else 1)
            steps = min(steps, most)
            return Heat(entrants, rungs, steps, entrants * rungs * steps * step_s + trials * overhead_s)
    return Heat(0, 0, 0, 0.0)


@dataclass(frozen=True)
class Standing:
    """What there is to beat.

    Attributes:
        known: Merit and chance to be certified of every trial within the budget, best first.
        best: Merit of the best that will rather be certified than not; of the best, if none will.
    """

    known: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, known: Iterable[tuple[float, float]]) -> "Standing":
        """From merits and chances in any order."""
        return cls(tuple(sorted(known, reverse=True)))

    @property
    def best(self) -> float:
        """See above."""
        likely = [merit for merit, chance in self.known if chance >= _RATHER] or [merit for merit, _ in self.known]
        return max(likely, default=1.0)

    def gain(self, merit: float) -> float:
        """Expected log of how much better a merit is than the best that will be certified; 0 where it is worse."""
        total, none_better = 0.0, 1.0
        least = min([1.0, *(merit for merit, _ in self.known)])
        for other, chance in (*self.known, (least, 1.0)):
            total += none_better * chance * max(math.log(merit / other), 0.0)
            none_better *= 1 - chance
        return total

    def won(self, merit: float) -> "Standing":
        """After something of this merit was certified."""
        return Standing.of([*self.known, (merit, 1.0)])


def promise(trial: Trial, standing: Standing, max_drop: float, counts: Counts, rungs_left: int) -> float:
    """Expected gain: the chance of keeping the accuracy at the end, times the log of how much better it would be.

    Args:
        trial: A recovery so far.
        standing: What there is to beat.
        max_drop: The budget.
        counts: Of the scores that tell.
        rungs_left: Trainings that are still to come.
    """
    if not trial.measured:
        return 0.0
    expected = left_after(trial.drop, rungs_left)
    noise = noise_of(trial, counts) / counts.searched
    unsure = math.sqrt(noise + (_UNSURE * trial.drop if rungs_left else 0.0) ** 2)
    return NormalDist().cdf((max_drop - expected) / unsure) * max(standing.gain(trial.merit), 0.01)


@dataclass(frozen=True)
class Recovery:
    """How a training ended: damage before it, steps, and whether the accuracy was kept."""

    damage: float
    steps: int
    kept: bool


def recovers(damage: float, steps: int, seen: Sequence[Recovery] = ()) -> float:
    """How likely a cut network is to keep the accuracy after `steps` of training: a rule of thumb for who may try.

    A half at a damage that grows with the root of the training. With few steps little damage goes before much speed;
    with many the other way round. How much damage 100 steps make good differs between networks: four amounts are held
    equally likely at first, and by Bayes' rule as they explain what was seen.

    Args:
        damage: Squared distance of its answers from the original's before training, in units of their spread.
        steps: Of training.
        seen: How recoveries of this network ended.
    """

    def chance(half: float, of: float, after: int) -> float:
        return 1 / (1 + (max(of, 0.0) / (half * math.sqrt(max(after, 1) / 100))) ** 4)

    likely = dict.fromkeys(_HALF_DAMAGES, 1.0)
    for past in seen:
        for half in likely:
            kept = chance(half, past.damage, past.steps)
            likely[half] *= kept if past.kept else 1 - kept
    total = sum(likely.values()) or 1.0
    return sum(weight * chance(half, damage, steps) for half, weight in likely.items()) / total


def left_after(drop: float, trainings: int) -> float:
    """What is expected to be left of a drop after as much training again, and twice that, and so on."""
    return drop * _LEFT_AFTER_RUNG**trainings if drop > 0 else drop


def worth(merit: float, standing: Standing, chance: float) -> float:
    """Expected gain of training a cut network: the chance that it keeps the accuracy times the log of what it gains."""
    return chance * standing.gain(merit)


def worth_first(own: tuple[float, float], others: Sequence[tuple[float, float]], standing: Standing) -> float:
    """Expected gain of training one network now, and then the best choice of the others.

    So something bold goes first, if what is sure can still follow where it fails.

    Args:
        own: Merit of the network, and the chance that it keeps the accuracy.
        others: The same of what may follow, in the training that is left then; none: nothing follows.
        standing: What there is to beat.
    """
    merit, chance = own

    def follows(then: Standing) -> float:
        return _LATER * max((worth(m, then, c) for m, c in others), default=0.0)

    return chance * (standing.gain(merit) + follows(standing.won(merit))) + (1 - chance) * follows(standing)
