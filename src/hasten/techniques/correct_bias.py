"""Bias correction: rounding weights shifts the mean of a layer's output; take the shift out of its bias.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, with
the expectation measured on calibration data. Every layer is measured on the float network's inputs ("fast" correction):
one pass over the data corrects all layers.
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
class CorrectBias:
    """Comes before `Quantize` and corrects for int8 weights per channel, as `Quantize` will round them."""

    stage: ClassVar[Stage] = Stage.QUANTIZE

    weight_bits: int = option(8, "bits that the weights will be rounded to", choices=(8, 7))
    samples: int = option(64, "calibration samples to look at", low=1)

    def __post_init__(self) -> None:
        check_options(self)

    def apply(self, graph: "GraphModule", task: "Task") -> "GraphModule":
        """Return a float graph with shifted biases; `Quantize` comes after it.

        Raises:
            Unsupported: No layer has both weights and a bias.
        """
        from hasten.quantization.correction import correct_biases
        from hasten.quantization.static import first_samples, inference_form

        graph = inference_form(graph, task.example)
        batches = list(first_samples(calibration_inputs(task), self.samples))
        if not correct_biases(graph, batches, self.weight_bits):
            raise Unsupported("The graph has no convolution or linear layer with a bias.")
        return graph
