"""The options of every technique that removes units, stated once, and what they do together."""

from dataclasses import dataclass
from typing import Literal

from torch.fx import GraphModule

from hasten.pruning.importance import IMPORTANCES, Importance
from hasten.pruning.iterate import iterate
from hasten.pruning.schedule import SCHEDULES, shares
from hasten.pruning.structured import Cutting, Further, check_ratios, check_widths, cut
from hasten.recipe import check_options, option
from hasten.task import Task
from hasten.training import Training


@dataclass(frozen=True)
class Removal:
    """Score units, remove the least important ones, recover.

    With `epochs` of 0 the graph is cut once and not trained. With more, it is cut in `steps` and trained after each to
    answer like the original; with `max_drop` it stops at the last step that keeps the score.

    Sources: see `hasten.pruning.importance`; schedules: `hasten.pruning.schedule`.

    Raises:
        InvalidInput: An option outside its range.
    """

    ratio: float = option(
        0.3, "share of the units to remove", low=0.0, high=1.0, open_high=True, grid=(0.2, 0.35, 0.5, 0.65)
    )
    importance: Importance = option("activation_l2", "what units are scored by", choices=IMPORTANCES)
    scope: Literal["global", "layer"] = option(
        "global", "compare all units, or take the share of every layer", choices=("global", "layer")
    )
    round_to: int = option(1, "round the width of every layer up to a multiple of this", low=1)
    largest: float = option(0.9, "largest share of one layer that a global cut takes", low=0.0, high=1.0)
    approximate: bool = option(False, "also cut units through a normalisation over the cut dimension")
    widths: tuple[tuple[str, tuple[int, ...]], ...] = option(
        (), "allowed widths by layer; a width is rounded up to the next of them"
    )
    ratios: tuple[tuple[str, float], ...] = option((), "share to remove by group name; only these are cut")
    samples: int | None = option(None, "calibration samples to score units on; null: all", low=1)
    reconstruct: int = option(512, "calibration samples to refit the layers that are left on; 0: leave them", low=0)
    schedule: Literal["one-shot", "linear", "cubic"] = option(
        "one-shot", "how the share grows over the steps", choices=SCHEDULES
    )
    steps: int = option(4, "cuts of a linear or cubic schedule", low=1)
    epochs: int = option(0, "training after every cut", low=0)
    lr: float = option(0.01, "peak learning rate of that training", low=0.0)
    max_drop: float | None = option(None, "stop at the last step that drops the score by at most this", low=0.0)
    seed: int = option(0, "seeds the training", low=0)

    def __post_init__(self) -> None:
        check_options(self)
        check_ratios(self.ratios)
        check_widths(self.widths)
        # A recipe read from YAML holds lists inside; a frozen technique is hashable only with tuples.
        object.__setattr__(self, "widths", tuple((layer, tuple(allowed)) for layer, allowed in self.widths))

    def without(self, graph: GraphModule, task: Task, kinds: frozenset[str]) -> GraphModule:
        """A copy of `graph` with fewer units of `kinds`.

        Raises:
            InvalidInput: A group in `ratios` does not exist.
            Unsupported: No unit of these kinds can be removed exactly.
        """
        cutting = Cutting(
            kinds,
            self.importance,
            scope=self.scope,
            largest=self.largest,
            round_to=self.round_to,
            widths={layer: tuple(allowed) for layer, allowed in self.widths},
            approximate=self.approximate,
            ratios=dict(self.ratios),
            samples=self.samples,
            reconstruct=self.reconstruct,
        )
        if self.epochs == 0:
            return cut(graph, task, cutting, self.ratio)
        # Clipped as in `Distill`: a refit may leave large weights where few units say what many did.
        training = Training(epochs=self.epochs, lr=self.lr, seed=self.seed, clip_norm=5.0)
        grown = shares(self.ratio, self.steps, self.schedule)
        return iterate(graph, task, Further(task, cutting, self.ratio), grown, training, self.max_drop)
