"""Look at smaller images: the network first scales its input down, and everything behind computes on fewer pixels."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from hasten.errors import Unsupported
from hasten.graph.capture import as_tuple, placeholders
from hasten.graph.duplicate import duplicate
from hasten.graph.surgery import refresh_shapes
from hasten.recipe import Stage, check_options, option
from hasten.task import Task

_SMALLEST = 8


@dataclass(frozen=True)
class LowerResolution:
    """Scale images down inside the network, so that callers go on passing what they passed; `Distill` follows.

    Work falls with the square of the side. A convolutional network that ends in a pooling over all positions runs at
    any size; what it has learned about scale is a little off there, which a short training mends. Sources: Tan and Le
    2019, "EfficientNet", section 3 (resolution as a dimension of scaling); Touvron et al. 2019, "Fixing the train-test
    resolution discrepancy", section 3.

    Raises:
        InvalidInput: An option outside its range.
        Unsupported: No input is an image, the graph is fixed to its size, or rounding leaves it as it is.
    """

    stage: ClassVar[Stage] = Stage.PRUNE

    side: float = option(0.75, "share of the height and width to keep", low=0.05, high=1.0, grid=(0.86, 0.72, 0.58))

    def __post_init__(self) -> None:
        check_options(self)

    def apply(self, graph: GraphModule, task: Task) -> GraphModule:
        """A copy of `graph` that scales its images [N, C, H, W] down first."""
        changed = duplicate(graph)
        scaled = [self._scale(changed, node) for node in placeholders(changed) if _is_image(node)]
        if not any(scaled):
            raise Unsupported(
                f"`side` {self.side} must make an image smaller, but the graph has none of at least {2 * _SMALLEST} "
                "pixels a side that it would. Leave this technique out for other inputs."
            )
        changed.recompile()
        expected = [x.shape for x in _outputs(graph, task)]
        try:
            refresh_shapes(changed)
            found = [x.shape for x in _outputs(changed, task)]
        except Exception as error:  # whatever operator first meets a size that it was not captured with
            raise Unsupported(
                f"The graph must run on smaller images, but it is fixed to its size: {error!s:.200}"
            ) from error
        if found != expected:
            raise Unsupported(f"Outputs must keep their shapes, but {expected} became {found} on smaller images.")
        return changed

    def _scale(self, graph: GraphModule, node: Node) -> bool:
        """Insert the scaling behind an input; whether its size changes at all."""
        sizes = [int(size) for size in node.meta["val"].shape[2:]]
        smaller = [_rounded(self.side * size, size) for size in sizes]
        if smaller == sizes:
            return False
        with graph.graph.inserting_after(node):
            # Not antialiased: at more than half the side there is little to gain, and runtimes have it ready.
            scaled = graph.graph.call_function(
                torch.ops.aten.upsample_bilinear2d.vec, (node, smaller, False, None)
            )  # fmt: skip
        node.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)
        return True


def _is_image(node: Node) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.ndim != 4 or not value.is_floating_point():
        return False
    return all(isinstance(size, int) and size >= 2 * _SMALLEST for size in value.shape[2:])


def _rounded(wanted: float, size: int) -> int:
    """The nearest multiple of a sixteenth of the side, or rather of the power of two below it: strides divide those."""
    step = 1 << max((size // 16).bit_length() - 1, 0)
    return min(size, max(_SMALLEST, step * round(wanted / step)))


@torch.no_grad()
def _outputs(graph: GraphModule, task: Task) -> tuple[Tensor, ...]:
    return as_tuple(graph(*task.example))
