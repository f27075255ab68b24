"""One trial: a recipe applied, compiled, timed and scored, or the reason why not."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hasten.judged import within
from hasten.measure.latency import Latency
from hasten.recipe import Recipe, describe
from hasten.search.limits import applying
from hasten.task import Budget


@dataclass(frozen=True)
class Trial:
    """What became of one recipe.

    Attributes:
        number: Position in the run; 0 is the original.
        recipe: What was tried.
        failure: Empty if it was measured, else why not.
        latency: Batch-1 latency against the original, measured in turns with it.
        gain: Times better than the original in the budget's objective; NaN where that is the latency. Of a program that
            is judged: its room under the limits (`hasten.judged.room`), which is no comparison with the original.
        score: Mean score on the search part.
        drop: Baseline score minus `score`, on the search part.
        changed: Share of search samples whose score differs from the original's.
        noise: Mean squared difference of its scores from the original's, per sample: what makes the drop of other
            samples another. Of right and wrong it is `changed`.
        size_bytes: Of the target's files.
        peak_memory_bytes: Resident memory of the measuring process, runtime included.
        seconds: Wall time spent, by stage.
        loaded: Times faster than the original by the ways its program was loaded, where several were timed; the
            fastest is the recipe's target.
        judged: What the target stated of a program that is not timed, by name; then there is no `latency`.
    """

    number: int
    recipe: Recipe
    failure: str = ""
    latency: Latency | None = None
    gain: float = float("nan")
    score: float = float("nan")
    drop: float = float("nan")
    changed: float = float("nan")
    noise: float = float("nan")
    size_bytes: int = 0
    peak_memory_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    loaded: dict[str, float] = field(default_factory=dict)
    judged: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """One line: the steps and the target."""
        return " + ".join([*map(describe, self.recipe.steps), describe(self.recipe.target)])

    @property
    def measured(self) -> bool:
        """Whether it was timed, or judged where its target is not timed."""
        return self.latency is not None or bool(self.judged)

    @property
    def ratio(self) -> float:
        """Times faster than the original at batch 1; 0 if it was not measured."""
        return self.latency.ratio if self.latency else 0.0

    @property
    def merit(self) -> float:
        """What the search seeks most of: times better than the original, or room under the limits; 0 if unknown."""
        return merit_of(self.latency, self.gain)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self) | {"name": self.name, "recipe": self.recipe.to_yaml()}
        values["evidence"] = self.recipe.target.evidence
        return {k: None if isinstance(v, float) and v != v else v for k, v in values.items()}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Trial":
        """The trial that `to_json` wrote."""
        values = {f.name: document[f.name] for f in fields(cls) if f.name in document}
        values |= {k: float("nan") for k in ("gain", "score", "drop", "changed", "noise") if values[k] is None}
        values["recipe"] = Recipe.from_yaml(values["recipe"])
        values["latency"] = Latency(**values["latency"]) if values["latency"] else None
        return cls(**values)


def merit_of(latency: Latency | None, gain: float) -> float:
    """See `Trial.merit`."""
    if gain == gain:
        return gain
    return latency.ratio if latency else 0.0


def fits(trial: Trial, budget: Budget) -> bool:
    """Whether a trial was measured and is within the budget on the search part."""
    if not trial.measured or not trial.drop <= budget.max_drop:
        return False
    small = budget.max_size_bytes is None or trial.size_bytes <= budget.max_size_bytes
    if budget.limits or trial.latency is None:
        return small and bool(trial.judged) and within(trial.judged, applying(trial.recipe.target, budget.limits))
    return small and (budget.max_latency_ms is None or trial.latency.median_ms <= budget.max_latency_ms)


def floor_of(original: Trial, budget: Budget) -> float:
    """The merit that a candidate must be above: the original's, unless the original is itself beyond the limits.

    The original runs on this machine, so it is not judged, and a candidate that is judged need not beat it.
    """
    return 1.0 if fits(original, budget) else 0.0


def contenders(trials: Sequence[Trial], budget: Budget) -> list[Trial]:
    """Candidates within the budget on the search part that beat the original, which is the first of `trials`."""
    floor = floor_of(trials[0], budget) if trials else 0.0
    return [t for t in trials[1:] if fits(t, budget) and t.merit > floor]


def merit_text(merit: float, budget: Budget) -> str:
    """A merit in words: how many times better than the original, or what is used of the tightest limit."""
    if not budget.limits:
        return f"{merit:.2f}x"
    return f"{1 / merit:.0%} of the limit" if merit > 0 else "beyond every limit"
