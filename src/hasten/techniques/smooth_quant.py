"""Move outliers of a transformer's activations into its weights, where rounding per channel can hold them.

Source: Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
section 4, equation 4. The same rule serves convolutions whose activations have channels of very unlike range.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hasten.errors import Unsupported
from hasten.recipe import Stage, check_options, option
from hasten.task import calibration_inputs

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task


@dataclass(frozen=True)
class SmoothQuant:
    """Divide a tensor's channels by max|x|^strength / max|w|^(1 - strength), and multiply the weights that read it."""

    stage: ClassVar[Stage] = Stage.QUANTIZE

    # The paper's 0.5 suits weights rounded per tensor; rounded per channel they can take more of the outliers.
    strength: float = option(
        0.85, "0 looks at the weights alone, 1 makes all channels of an activation alike", low=0, high=1
    )
    insert: bool = option(True, "where no layer can take the scale, multiply in an operator of its own")
    samples: int = option(64, "calibration samples to look at", low=1)

    def __post_init__(self) -> None:
        check_options(self)

    def apply(self, graph: "GraphModule", task: "Task") -> "GraphModule":
        """Return a float graph of the same function; `Quantize` comes after it.

        Raises:
            Unsupported: No tensor has a producer and consumers that can take the scale.
        """
        from hasten.quantization import equalize
        from hasten.quantization.static import first_samples, inference_form

        graph = inference_form(graph, task.example)
        pairs = equalize.pairs(graph)
        if self.insert:
            pairs += equalize.readers(graph, pairs)
        if not pairs:
            raise Unsupported("The graph has no layer norm, convolution or linear layer whose channels can be scaled.")
        batches = first_samples(calibration_inputs(task), self.samples)
        activations = equalize.activation_ranges(graph, [pair.value for pair in pairs], batches)
        for pair in pairs:
            weights = equalize.consumer_ranges(graph, pair).clamp(min=1e-5)
            scale = activations[pair.value].clamp(min=1e-5) ** self.strength / weights ** (1 - self.strength)
            # A channel that is never active, or never read, tells nothing; leave it.
            scale[(activations[pair.value] == 0) | (weights <= 1e-5)] = 1.0
            equalize.apply_scale(graph, pair, scale)
        graph.recompile()
        return graph
