"""Architectures to train: cut and shortened networks, timed untrained on the runtimes that won so far."""

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import GraphModule

from hasten.errors import HastenError, Unsupported
from hasten.graph.blocks import find_blocks, find_layers
from hasten.pruning.sensitivity import Curves
from hasten.recipe import Recipe, Target, Technique, describe, make_target, make_technique, name_of, options_of
from hasten.search.allocation import GRID, CostModel, explore, fit, nearer, uniform
from hasten.search.damage import damage_curves
from hasten.search.graphs import Steps, key_of
from hasten.search.heat import Recovery, recovers
from hasten.search.session import Session
from hasten.search.stages import REFITTED_SAMPLES, Shares, find_stages, stage_curves, steps_of
from hasten.search.trial import Trial, fits, merit_text

# Timing cut networks may take this share of a deadline, and where there is none this many measurements.
_SHARE, _MOST_PROBES = 0.2, 20
# Where the fewest that are of use take longer, they may take this share.
_LARGEST_SHARE = 0.4
FEWEST_PROBES, _AMPLE_PROBES = 3, 12
_STAGES = 6
_DEPTHS = (0.75, 0.5, 0.875)
_SIDES = (0.86, 0.72, 0.58)
_FEWEST_BLOCKS = 4
# Where there is little time: shares of every layer, in the order they are tried; samples to refit what is left on.
_CUTS = (0.5, 0.375, 0.25)
_QUICKLY_REFITTED = 128
# Damage of what could not be measured: as large as it is ever taken to be.
_UNKNOWN = 2.0
# Something new is timed late in a search only if so many timings would fit into what is left.
_LEFT_FOR_ONE = 15
_NEAR = 1.25
_ABOUT_EQUAL = 1.08
_STATISTICS_ROWS = 128
# Renewing the statistics does this much damage to a network only if they were of other data.
_OTHER_DATA = 0.2
# What refitting the layers that are left did not repair is harder to train away than as much fresh damage.
_REFITTED = 2.0
_ROUGH_SAMPLES = 16


@dataclass(frozen=True)
class Finish:
    """How candidates end: what quantizes them (nothing, for a float program), and the target."""

    steps: Steps
    target: Target

    def rough(self) -> "Finish":
        """What gives a program of the same speed sooner, with weights and ranges that need not be good."""
        options = options_of(self.target)
        few = {"samples": min(options["samples"], _ROUGH_SAMPLES)} if "samples" in options else {}
        target = make_target(name_of(self.target), options | few)
        return replace(self._with_plain(bias_correction=False, samples=_ROUGH_SAMPLES), target=target)

    def quick(self) -> "Finish":
        """The same with weights rounded to the nearest, which tells as well who recovers better."""
        return self._with_plain()

    def _with_plain(self, **options: Any) -> "Finish":
        return replace(self, steps=tuple(plain_quantize(step, **options) for step in self.steps))

    def recipe(self, steps: Steps) -> Recipe:
        """The recipe of a candidate that is cut and trained by `steps`."""
        return Recipe((*steps, *self.steps), self.target)


@dataclass(frozen=True)
class Architecture:
    """A network that is cut but not trained.

    Attributes:
        name: For the log.
        steps: What cuts it.
        merit: Measured, with its finish: see `Trial.merit`.
        damage: Squared distance of its answers from the original's, in units of their spread.
        finish: What it was measured with.
        measured: Whether `damage` was measured on the whole network; else it is a sum over what is cut.
        frozen: Whether batch norm keeps its statistics in a recovery.
        chance: How likely it is certified after some more training; None if it has had none.
    """

    name: str
    steps: Steps
    merit: float
    damage: float
    finish: Finish
    measured: bool = False
    frozen: bool = False
    chance: float | None = None

    def recovers(self, steps: int, seen: Sequence[Recovery] = ()) -> float:
        """How likely it keeps the accuracy after `steps` of training, by how others ended."""
        return recovers(self.to_repair, steps, seen) if self.chance is None else self.chance

    @property
    def to_repair(self) -> float:
        """Damage as training finds it: what is measured on a refitted network counts for more."""
        refitted = any(options_of(step).get("reconstruct") for step in self.steps)
        return self.damage * (_REFITTED if refitted and self.measured else 1.0)


def plain_quantize(step: Technique, **options: Any) -> Technique:
    """`quantize` to the nearest integers in place of a step that quantizes with more effort; others as they are."""
    if name_of(step) not in ("quantize", "train_quantized"):
        return step
    kept = {k: v for k, v in options_of(step).items() if k in ("placement", "observer", "samples", "keep_float")}
    return make_technique("quantize", kept | {"rounding": "nearest"} | options)


def finishes(session: Session) -> list[Finish]:
    """The best way to end so far, and with it the best on another target if it is near."""
    measured = [t for t in session.trials[1:] if t.measured and not _cuts(t)]
    within = [t for t in measured if fits(t, session.budget)] or measured
    ranked = sorted(within, key=lambda t: -t.merit)
    found: list[Trial] = ranked[:1]
    others = [t for t in ranked if name_of(t.recipe.target) != name_of(ranked[0].recipe.target)]
    found += [t for t in others[:1] if t.merit * _NEAR >= ranked[0].merit]
    return [Finish(t.recipe.steps, t.recipe.target) for t in found]


class Candidates:
    """Proposes architectures for one finish; everything it measures is on record."""

    def __init__(self, session: Session, finish: Finish, probes: int) -> None:
        self.session, self.finish = session, finish
        self.graph, _ = session.bench.graphs.after((), {})
        self.stages = find_stages(self.graph, max(1, min(_STAGES, probes - _AMPLE_PROBES)))
        self.curves: Curves = {}
        self.model: CostModel | None = None
        self.probes = probes
        self._modelled: dict[float, float] = {}
        self._changes: list[Architecture] = []
        self._base = 1.0

    def first(self, base: float, least: float = 0.0) -> list[Architecture]:
        """Architectures on the front of measured cost and predicted damage; none where cutting does not pay.

        Args:
            base: Merit of the network that is not cut.
            least: Merit that something must have to be of use.
        """
        self._base = base
        ample = self.probes >= _AMPLE_PROBES
        if not ample and any(self._sides_and_depths()):
            why = f"time allows for {self.probes} timings; these need no sensitivity of every group"
            self.session.decide("only what changes the whole network", True, why)
            return self._few(least)
        whole = self._whole()
        found = [a for name, steps in whole if (a := self._measured(name, steps)) is not None]
        if not self.stages:
            self.session.decide("pruning", False, "nothing can be cut exactly")
            return found
        single = self.probes >= _AMPLE_PROBES + len(self.stages)
        shares = (0.25, 0.5, 0.75) if ample else (0.5, 0.75)
        self.model = fit(self.stages, 1 / base, self._cost, shares, single)
        if self.model is None:
            self.session.decide("pruning", False, "half of all units less is not faster on this runtime")
            return found
        groups = damage_curves(self.session, self.graph, self.stages)
        self.curves = groups
        by_stage = stage_curves(self.stages, groups, list(GRID))
        left = max(1, self.probes - len(whole) - len(shares) - single * len(self.stages))
        points = explore(self.model, by_stage, self._cost, left, self.session.seed)
        return found + [self._architecture(p.shares, 1 / p.cost, p.damage) for p in points]

    def at(self, merit: float) -> Architecture | None:
        """A new architecture of about this merit, from the model as corrected by what was measured.

        Where there were timings for few changes of the whole network only: two of those.
        """
        if self.model is None:
            return self._two(merit)
        by_stage = stage_curves(self.stages, self.curves, list(GRID))
        shares = nearer(self.model, by_stage, self._modelled, 1 / merit)
        cost = self._cost(shares) if shares else None
        if cost is None:
            return None
        return self._architecture(shares, 1 / cost, sum(by_stage[name][share] for name, share in shares.items()))

    def _architecture(self, shares: Shares, merit: float, damage: float) -> Architecture:
        steps = steps_of(self.stages, shares, self.curves, "activation_l2", refitted=REFITTED_SAMPLES)
        name = "cut " + ", ".join(f"{stage} by {share:.0%}" for stage, share in sorted(shares.items()))
        return Architecture(name, steps, merit, damage, self.finish)

    def _few(self, least: float) -> list[Architecture]:
        """The few changes of the whole network that reach the merit `least`, in the order they are worth a timing:
        fewer pixels, every layer narrower (half was timed already), fewer blocks.
        """
        sides, depths = self._sides_and_depths()
        cuts = [uniform(self.stages, share) for share in _CUTS] if self.stages else []
        bold: list[Steps | Shares] = [*sides[1:2], *cuts[:1], *sides[2:], *depths[:2]]
        ranked = [*bold, *cuts[1:], *sides[:1], *depths[2:]]
        found = []
        for entry in ranked[: self.probes + len(cuts[:1])]:
            if isinstance(entry, tuple):
                found.append(self._measured(", ".join(map(describe, entry)), entry))
            elif (cost := self._cost(entry)) is not None:
                steps = steps_of(self.stages, entry, {}, "activation_l2", refitted=_QUICKLY_REFITTED)
                name = f"cut all by {next(iter(entry.values())):.0%}"
                found.append(Architecture(name, steps, 1 / cost, _UNKNOWN, self.finish))
        # Refitting takes as long as several timings, so only what would win is refitted to measure its damage.
        wins = [a for a in found if a is not None and a.merit >= least]
        self._changes = [with_damage(self.session, a) for a in wins]
        return self._changes

    def _two(self, merit: float) -> Architecture | None:
        """Fewer pixels and another change, of those that are to gain this much the pair with the least to repair.

        Gains are taken to multiply and damages to add until the pair was timed; None where there is no time for that.
        """
        sides = [a for a in self._changes if name_of(a.steps[0]) == "lower_resolution"]
        pairs = [(side, a) for side in sides for a in self._changes if a not in sides]
        enough = [pair for pair in pairs if math.prod(a.merit / self._base for a in pair) * self._base >= merit]
        if not enough:
            return None
        side, other = min(enough, key=lambda pair: sum(a.to_repair for a in pair))
        name, steps = f"{side.name}, {other.name}", (*side.steps, *other.steps)
        each_s = (self.session.journal.find("plan", "probes") or {}).get("each_s", 0.0)
        there_is = {"left_s": min(self.session.left_s(), 1e6)}
        found = self.session.journal.once("plan", f"time for {name}", lambda: there_is)
        return self._measured(name, steps) if found["left_s"] >= _LEFT_FOR_ONE * each_s else None

    def _whole(self) -> list[tuple[str, Steps]]:
        """What changes the whole network: fewer pixels, fewer residual blocks, both."""
        sides, depths = self._sides_and_depths()
        both: list[Steps] = [(*side, *depths[0]) for side in sides[:2]] if depths else []
        return [(", ".join(map(describe, steps)), steps) for steps in (*sides, *depths, *both)]

    def _sides_and_depths(self) -> tuple[list[Steps], list[Steps]]:
        layers, blocks = find_layers(self.graph), find_blocks(self.graph)
        unit, count = ("layer", len(layers)) if len(layers) >= _FEWEST_BLOCKS else ("block", len(blocks))
        depths: list[Steps] = [
            (make_technique("shrink", {"depth": depth, "unit": unit}),)
            for depth in _DEPTHS
            if math.ceil(depth * count) < count
        ]
        sides: list[Steps] = [(make_technique("lower_resolution", {"side": side}),) for side in _SIDES]
        return [s for s in sides if self._applies(s[0])], depths if count >= _FEWEST_BLOCKS else []

    def _applies(self, step: Technique) -> bool:
        try:
            self.session.bench.graphs.after((step,), {})
        except HastenError:
            return False
        return True

    def _measured(self, name: str, steps: Steps) -> Architecture | None:
        result = probe(self.session, steps, self.finish, damage=True)
        if "failure" in result:
            return None
        return _damaged(Architecture(name, steps, result["merit"], 0.0, self.finish), result)

    def _cost(self, shares: Shares) -> float | None:
        # Neither which units go nor what the others answer matters to the time, so the quickest way will do.
        steps = steps_of(self.stages, shares, self.curves, "weight_l2", refitted=0)
        result = probe(self.session, steps, self.finish)
        if "failure" in result:
            return None
        if self.model is not None:
            self._modelled[self.model(shares)] = 1 / result["merit"]
        return 1 / float(result["merit"])


def probe(session: Session, steps: Steps, finish: Finish, damage: bool = False) -> dict[str, Any]:
    """Merit of an untrained network, rounded and compiled as its finish says; with `damage`, that of its answers."""

    rough = finish.rough()

    def measure() -> dict[str, Any]:
        started, seconds = time.perf_counter(), dict[str, float]()
        session.listener.trying(f"timing untrained: {', '.join(map(describe, steps))}")
        graph, _ = session.bench.graphs.after((*steps, *rough.steps), seconds)
        merit, measured = session.bench.probe(graph, rough.recipe(steps))
        found: dict[str, Any] = {"steps": [describe(step) for step in steps], "merit": merit}
        if damage:
            cut, _ = session.bench.graphs.after(steps, seconds)
            damaging = time.perf_counter()
            found |= _damage(session, cut)
            seconds["damage"] = time.perf_counter() - damaging
        return found | {"seconds": seconds | measured, "wall_s": time.perf_counter() - started}

    return session.once("probe", f"{key_of(steps)} {key_of(rough.steps)} {describe(rough.target)}", measure)


def with_damage(session: Session, a: Architecture) -> Architecture:
    """The same with the damage of the whole network measured; as it is, where that fails."""
    if a.measured:
        return a

    def measure() -> dict[str, Any]:
        session.listener.trying(f"damage of {a.name}")
        started, seconds = time.perf_counter(), dict[str, float]()
        damage = _damage(session, session.bench.graphs.after(a.steps, seconds)[0])
        return damage | {"wall_s": time.perf_counter() - started}

    found = session.once("damage", key_of(a.steps), measure)
    return _damaged(a, found) if "damage" in found else a


def probe_budget(session: Session, finish: Finish) -> int:
    """How many untrained networks may be timed: by what the first, a uniform half, has taken."""
    steps = _half(session)
    each_s = probe(session, steps, finish).get("wall_s", 5.0) if steps else 5.0
    left_s = max(min(session.left_s(), 1e6), 0.0)
    count = min(_MOST_PROBES, int(_SHARE * left_s / each_s))
    if count < FEWEST_PROBES <= _LARGEST_SHARE * left_s / each_s:
        count = FEWEST_PROBES
    return int(session.once("plan", "probes", lambda: {"count": count, "each_s": each_s})["count"])


def better_finish(session: Session, finishes: Sequence[Finish]) -> Finish:
    """The finish on which the network cut by a uniform half is best: runtimes differ in what narrow layers cost.

    Of those that are about equal, the one that compiles sooner, since it leaves time for more candidates.
    """
    steps = _half(session)
    if not steps or len(finishes) < 2:
        return finishes[0]
    probes = [probe(session, steps, finish) for finish in finishes]
    merits = [found.get("merit", 0.0) for found in probes]
    equal = [i for i, merit in enumerate(merits) if merit * _ABOUT_EQUAL >= max(merits)]
    best = min(equal, key=lambda i: probes[i].get("wall_s", 0.0))
    for index, finish in enumerate(finishes):
        why = f"{merit_text(merits[index], session.budget)} when cut by half"
        why += f", measured in {probes[index].get('wall_s', 0.0):.0f} s"
        session.decide(f"finish {describe(finish.target)}", index == best, why)
    return finishes[best]


def _half(session: Session) -> Steps:
    """What cuts all that can be cut exactly by a half; empty where that is nothing."""
    graph, _ = session.bench.graphs.after((), {})
    stages = find_stages(graph, 1)
    return steps_of(stages, uniform(stages, 0.5), {}, "weight_l2", refitted=0)


def _damage(session: Session, graph: GraphModule) -> dict[str, Any]:
    """The damage, and whether batch norm keeps its statistics in a recovery.

    A cut network needs new ones, and a training step makes them at once; so the damage is what is left with them.
    """
    kept = session.damage(graph)
    if _of_other_data(session):
        return {"damage": kept, "frozen": True}
    with contextlib.suppress(Unsupported):  # no batch norm
        return {"damage": min(kept, session.damage(_renewed(session, graph))), "frozen": False}
    return {"damage": kept, "frozen": False}


def _of_other_data(session: Session) -> bool:
    """Whether the statistics of batch norm are not of the task's data, so that renewing them changes every answer.

    So it is where a network was fine-tuned with most of its layers frozen. Training it on statistics of its batches
    undoes more than it repairs.
    """

    def measure() -> dict[str, float]:
        started = time.perf_counter()
        original, _ = session.bench.graphs.after((), {})
        damage = session.damage(_renewed(session, original))
        return {"damage": damage, "wall_s": time.perf_counter() - started}

    return bool(session.once("damage", "renewed statistics", measure).get("damage", 0.0) > _OTHER_DATA)


def _renewed(session: Session, graph: GraphModule) -> GraphModule:
    return make_technique("reestimate_batch_norm", {"samples": _STATISTICS_ROWS}).apply(graph, session.bench.inner)


def _damaged(a: Architecture, found: dict[str, Any]) -> Architecture:
    return replace(a, damage=found["damage"], measured=True, frozen=found["frozen"])


def _cuts(trial: Trial) -> bool:
    return any(step.stage.name != "QUANTIZE" for step in trial.recipe.steps)
