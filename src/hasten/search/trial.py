"""One trial: a recipe applied, compiled, timed and scored, or the reason why not."""

from dataclasses import asdict, dataclass, field
from typing import Any

from hasten.measure.latency import Latency
from hasten.recipe import Recipe, describe


@dataclass(frozen=True)
class Trial:
    """What became of one recipe.

    Attributes:
        number: Position in the run; 0 is the original.
        recipe: What was tried.
        failure: Empty if it was measured, else why not.
        latency: Batch-1 latency against the original, measured in turns with it.
        score: Mean score on the search part.
        drop: Baseline score minus `score`, on the search part.
        changed: Share of search samples whose score differs from the original's.
        size_bytes: Of the target's files.
        peak_memory_bytes: Resident memory of the measuring process, runtime included.
        seconds: Wall time spent, by stage.
    """

    number: int
    recipe: Recipe
    failure: str = ""
    latency: Latency | None = None
    score: float = float("nan")
    drop: float = float("nan")
    changed: float = float("nan")
    size_bytes: int = 0
    peak_memory_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """One line: the steps and the target."""
        return " + ".join([*map(describe, self.recipe.steps), describe(self.recipe.target)])

    @property
    def ratio(self) -> float:
        """Times faster than the original at batch 1; 0 if it was not measured."""
        return self.latency.ratio if self.latency else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self) | {"name": self.name, "recipe": self.recipe.to_yaml()}
        return {k: None if isinstance(v, float) and v != v else v for k, v in values.items()}


def front(trials: list[Trial]) -> list[Trial]:
    """The measured trials that no other beats in both latency ratio and score, fastest first."""
    kept: list[Trial] = []
    for trial in sorted((t for t in trials if t.latency), key=lambda t: (-t.ratio, -t.score)):
        if not kept or trial.score > kept[-1].score:
            kept.append(trial)
    return kept
