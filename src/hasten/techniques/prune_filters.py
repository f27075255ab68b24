"""Remove whole convolution filters, and everything in the network that belongs to them."""

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule

from hasten.pruning.removal import Removal
from hasten.recipe import Stage
from hasten.task import Task


@dataclass(frozen=True)
class PruneFilters(Removal):
    """Score every filter, remove the least important ones wherever their feature maps reach.

    Options and sources: `hasten.pruning.removal`.

    Raises:
        InvalidInput: An option outside its range, or a group in `ratios` that does not exist.
        Unsupported: No filter can be removed exactly.
    """

    stage: ClassVar[Stage] = Stage.PRUNE

    def apply(self, graph: GraphModule, task: Task) -> GraphModule:
        """A copy of `graph` with fewer filters."""
        return self.without(graph, task, frozenset({"filter"}))
