"""Run a graph node by node over several batches at once, so that two graphs can be compared and changed on the way."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from hasten.graph.capture import placeholders
from hasten.task import Inputs


class Frontier:
    """All batches behind the same node of a graph. A value is held from its node to the last node that reads it.

    Args:
        graph: What to run. Parameters may be changed in place on the way; nodes that follow see them changed.
        batches: Inputs, batch by batch.
    """

    def __init__(self, graph: GraphModule, batches: Sequence[Inputs]) -> None:
        self.nodes = [node for node in graph.graph.nodes if node.op != "output"]
        self.names = {node.name: node for node in self.nodes}
        self._order = {node: index for index, node in enumerate(self.nodes)}
        self._runner = Interpreter(graph, garbage_collect_values=False)
        self._done = 0
        self._last_read: dict[int, list[Node]] = {}
        for node in self.nodes:
            reads = [self._order[user] for user in node.users if user in self._order]
            self._last_read.setdefault(max(reads, default=self._order[node]), []).append(node)
        self._values: list[dict[Node, Any]] = [
            dict(zip(placeholders(graph), inputs, strict=True)) for inputs in batches
        ]

    def __len__(self) -> int:
        return len(self._values)

    def before(self, name: str) -> None:
        """Run everything that stands before the node called `name`."""
        self._run_to(self._order[self.names[name]])

    def behind(self, name: str) -> list[Any]:
        """Run up to and with the node called `name`; its value for every batch."""
        node = self.names[name]
        self._run_to(self._order[node] + 1)
        return [values[node] for values in self._values]

    def known(self, name: str) -> bool:
        """Whether the value of the node called `name` has been computed and is still held."""
        return bool(self._values) and self.names.get(name) in self._values[0]

    def value(self, batch: int, name: str) -> Any:
        """The value of a node that is held."""
        return self._values[batch][self.names[name]]

    def held_bytes(self) -> int:
        """Memory of all values held, parameters and views of other values not counted."""
        return sum(
            leaf.untyped_storage().nbytes()
            for values in self._values
            for node, value in values.items()
            if node.op != "get_attr"
            for leaf in pytree.tree_leaves(value)
            if isinstance(leaf, Tensor) and leaf._base is None
        )

    @torch.no_grad()
    def _run_to(self, end: int) -> None:
        while self._done < end:
            node = self.nodes[self._done]
            # What the node before was the last to read, it may still be asked for until now.
            for values in self._values:
                for gone in self._last_read.get(self._done - 1, ()):
                    values.pop(gone, None)
                if node.op != "placeholder":
                    self._runner.env = values
                    values[node] = self._runner.run_node(node)
            self._done += 1


def affordable(graph: GraphModule, batches: Iterable[Inputs], memory_bytes: float) -> list[Inputs]:
    """As many of the first batches as a `Frontier` of `graph` can hold in `memory_bytes`, but at least one."""
    found: list[Inputs] = []
    room = memory_bytes
    for inputs in batches:
        if not found:
            frontier, most = Frontier(graph, [inputs]), 1
            for node in frontier.nodes:
                frontier.behind(node.name)
                most = max(most, frontier.held_bytes())
            share = most / len(inputs[0])
        room -= share * len(inputs[0])
        if found and room < 0:
            break
        found.append(inputs)
    return found
