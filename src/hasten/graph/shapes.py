"""Give a graph that was read from a file the shapes that a captured one carries, without capturing it again."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from hasten.graph.capture import placeholders
from hasten.graph.surgery import refresh_shapes
from hasten.task import Inputs


def trace_shapes(graph: GraphModule, example: Inputs, *, dynamic: bool) -> None:
    """Set `meta["val"]` of every node, in place, as `capture` does: a third of its cost, as nothing is traced anew.

    Args:
        graph: From `load_graph`.
        example: One batch of inputs.
        dynamic: Whether the batch dimension is a symbol, the same for all inputs.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv())
    for node, x in zip(placeholders(graph), example, strict=True):
        # A size of 1 would be taken for a constant. Equal sizes that are "duck" become the same symbol.
        several = torch.cat([x, x]) if dynamic and len(x) == 1 else x
        first = DimDynamic.DUCK if dynamic else DimDynamic.STATIC
        sizes = [first, *[DimDynamic.STATIC] * (x.ndim - 1)]
        node.meta["val"] = mode.from_tensor(
            several.detach(), symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes)
        )
    refresh_shapes(graph)
