"""Set single weights to zero and keep them zero."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn
from torch.fx import GraphModule

from hasten.errors import InvalidInput, Unsupported
from hasten.graph.channels import attribute
from hasten.graph.duplicate import duplicate
from hasten.pruning import masks
from hasten.pruning.dead_units import remove_dead_units
from hasten.pruning.iterate import Mask, iterate
from hasten.pruning.schedule import SCHEDULES, shares
from hasten.recipe import Stage, check_options, option
from hasten.task import Task
from hasten.training import Training


@dataclass(frozen=True)
class PruneWeights:
    """Zero the weights below a threshold, or a share of them, or all but N of every M, over layers or each by itself.

    Weights of convolutions, linear layers and matrix products; biases and norms stay. Filters and neurons that are
    left without effect are removed. Zeros alone make no CPU runtime here faster: see `hasten.pruning.sparsity`.
    With `epochs` above 0 weights go in `steps`, with training after each; zeros stay zero through it.

    Sources: magnitude pruning (Han et al. 2015, section 3), iterative with training between (section 3.1), N:M
    (Mishra et al. 2021); schedules: `hasten.pruning.schedule`.

    Raises:
        InvalidInput: An option outside its range.
        Unsupported: The graph has no weights to prune.
    """

    stage: ClassVar[Stage] = Stage.PRUNE

    sparsity: float = option(
        0.5, "share of the weights that become zero", low=0.0, high=1.0, open_high=True, grid=(0.5, 0.8, 0.9)
    )
    threshold: float | None = option(None, "zero what is below this, instead of a share", low=0.0)
    scope: Literal["global", "layer", "2:4", "1:4", "4:8"] = option(
        "global",
        "compare all weights, or take the share of every layer, or keep N of every M inputs",
        choices=("global", "layer", "2:4", "1:4", "4:8"),
    )
    norm: float = option(2.0, "norm that blocks are compared by", low=0.5)
    block: int = option(1, "consecutive inputs that become zero together", low=1)
    remove_dead: bool = option(True, "remove filters and neurons that are left without effect")
    schedule: Literal["one-shot", "linear", "cubic"] = option(
        "one-shot", "how the share or threshold grows over the steps", choices=SCHEDULES
    )
    steps: int = option(4, "steps of a linear or cubic schedule", low=1)
    epochs: int = option(0, "training after every step", low=0)
    lr: float = option(0.01, "peak learning rate of that training", low=0.0)
    max_drop: float | None = option(None, "stop at the last step that drops the score by at most this", low=0.0)
    seed: int = option(0, "seeds the training", low=0)

    def __post_init__(self) -> None:
        check_options(self)
        if ":" in self.scope and (self.threshold is not None or self.block != 1):
            raise InvalidInput(
                f"`scope` {self.scope} fixes which weights stay, so `threshold` and `block` must be left out, "
                f"but got threshold {self.threshold} and block {self.block}."
            )

    def apply(self, graph: GraphModule, task: Task) -> GraphModule:
        """A copy of `graph` with zeros among its weights."""
        if not masks.weight_names(graph):
            raise Unsupported("There must be weights of at least two dimensions to prune, but this graph has none.")
        if self.epochs == 0:
            pruned = self._zeroed(graph, self._final())
        else:
            training = Training(epochs=self.epochs, lr=self.lr, seed=self.seed)
            schedule = "one-shot" if ":" in self.scope else self.schedule
            grown = shares(self._final(), self.steps, schedule)
            pruned = iterate(graph, task, self._zeroed, grown, training, self.max_drop, _hold)
        return remove_dead_units(pruned, task.example) if self.remove_dead else pruned

    def _final(self) -> float:
        return self.sparsity if self.threshold is None else self.threshold

    def _zeroed(self, graph: GraphModule, amount: float) -> GraphModule:
        """A copy of `graph` with the weights zeroed up to a share, or below a threshold."""
        weights = {name: attribute(graph, name) for name in masks.weight_names(graph)}
        if ":" in self.scope:
            keep, of = (int(n) for n in self.scope.split(":"))
            found = masks.by_pattern(weights, keep, of)
        elif self.threshold is not None:
            found = masks.by_threshold(weights, amount, self.norm, self.block)
        else:
            found = masks.by_share(weights, amount, self.norm, self.block, self.scope == "global")
        pruned = duplicate(graph)
        masks.apply_masks(pruned, found)
        return pruned


def _hold(graph: GraphModule) -> Mask:
    """What keeps the zeros of `graph` through training."""
    kept = masks.present_masks(graph)

    def after_step(model: nn.Module, step: int) -> None:
        del step
        masks.apply_masks(model, kept)

    return after_step
