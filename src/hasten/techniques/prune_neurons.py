"""Remove hidden neurons and attention heads, and everything in the network that belongs to them."""

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule

from hasten.errors import InvalidInput
from hasten.pruning.removal import Removal
from hasten.recipe import Stage, option
from hasten.task import Task


@dataclass(frozen=True)
class PruneNeurons(Removal):
    """Score every hidden unit of linear and recurrent layers and every attention head, remove the least important ones.

    Options and sources: `hasten.pruning.removal`.

    Raises:
        InvalidInput: An option outside its range, or a group in `ratios` that does not exist.
        Unsupported: No neuron or head can be removed exactly.
    """

    stage: ClassVar[Stage] = Stage.PRUNE

    neurons: bool = option(True, "remove hidden neurons")
    heads: bool = option(True, "remove attention heads, with grouped queries as many as share a key")
    head_sizes: bool = option(False, "remove elements of all heads of a layer")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.neurons or self.heads or self.head_sizes):
            raise InvalidInput("`neurons`, `heads` and `head_sizes` must not all be false. Turn one on.")

    def apply(self, graph: GraphModule, task: Task) -> GraphModule:
        """A copy of `graph` with fewer neurons and heads."""
        wanted = {"neuron": self.neurons, "head": self.heads, "head size": self.head_sizes}
        return self.without(graph, task, frozenset(kind for kind, on in wanted.items() if on))
