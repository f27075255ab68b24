"""Cross-layer equalization: make the weight ranges of neighbouring layers alike, without data.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1,
equation 11.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hasten.errors import Unsupported
from hasten.recipe import Stage, check_options, option

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task


@dataclass(frozen=True)
class EqualizeLayers:
    """Scale channels until every one has the same weight range on both sides of the activation."""

    stage: ClassVar[Stage] = Stage.QUANTIZE

    rounds: int = option(10, "passes over the network; ranges settle in a few", low=1)

    def __post_init__(self) -> None:
        check_options(self)

    def apply(self, graph: "GraphModule", task: "Task") -> "GraphModule":
        """Return a float graph of the same function; `Quantize` comes after it.

        Raises:
            Unsupported: No two layers are connected by a homogeneous activation (ReLU, not ReLU6).
        """
        from hasten.quantization import equalize
        from hasten.quantization.static import inference_form

        graph = inference_form(graph, task.example)
        pairs = equalize.pairs(graph, layer_norms=False)
        if not pairs:
            raise Unsupported("The graph has no two layers connected directly or through a homogeneous activation.")
        for _ in range(self.rounds):
            for pair in pairs:
                before, after = equalize.producer_ranges(graph, pair), equalize.consumer_ranges(graph, pair)
                # r1 / s = r2 * s
                scale = (before / after.clamp(min=1e-12)).sqrt()
                scale[(before == 0) | (after == 0)] = 1.0
                equalize.apply_scale(graph, pair, scale)
        return graph
