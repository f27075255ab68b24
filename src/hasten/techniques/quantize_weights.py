"""Weight-only quantization: integers in the file, float arithmetic; for models bound by memory, and for low bits.

Powers of two: see `hasten.quantization.logarithmic`; linear: see `hasten.quantization.linear`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from hasten.errors import InvalidInput, Unsupported
from hasten.recipe import Stage, check_options, option

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task


@dataclass(frozen=True)
class QuantizeWeights:
    """Round the weights of convolutions and linear layers to symmetric integers, stored as int8 with their scales."""

    stage: ClassVar[Stage] = Stage.QUANTIZE

    scheme: Literal["linear", "power_of_two"] = option(
        "linear", "equal steps, or a sign and a power of two", choices=("linear", "power_of_two")
    )
    bits: int = option(8, "width of the integers; powers of two: 4, 3 or 2", choices=(8, 6, 4, 3, 2))
    granularity: Literal["channel", "group"] = option(
        "channel", "one scale per output channel, or per group of its weights", choices=("channel", "group")
    )
    group: int = option(32, "weights in a group; layers whose channels it does not divide get a scale each", low=1)
    keep_float: tuple[str, ...] = option((), "names of layers (nodes of the captured graph) that stay in float")

    def __post_init__(self) -> None:
        check_options(self)
        if self.scheme == "power_of_two" and (self.bits > 4 or self.granularity != "channel"):
            raise InvalidInput(
                "`scheme` power_of_two must have `bits` of 4, 3 or 2 and `granularity` channel, "
                f"but got {self.bits} and {self.granularity!r}. More bits would only add powers below 1/64."
            )

    def apply(self, graph: "GraphModule", task: "Task") -> "GraphModule":
        """Return a copy with integer weights behind dequantize operators.

        Raises:
            Unsupported: The graph has no convolution or linear layer to round, or a name in `keep_float` is not in it.
        """
        from hasten.quantization.static import check_names, inference_form
        from hasten.quantization.weights import replace_weights, rounder

        check_names(graph, self.keep_float)
        graph = inference_form(graph, task.example)
        chosen = rounder(self.scheme, self.bits, self.group if self.granularity == "group" else None)
        if not replace_weights(graph, chosen, frozenset(self.keep_float)):
            raise Unsupported("The graph has no convolution or linear layer whose weights can be rounded.")
        return graph
