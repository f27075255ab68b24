"""Post-training quantization: weights and activations as integers, ranges from calibration data or as they come.

Source of the scheme: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", sections 2 and 3.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from hasten.errors import InvalidInput
from hasten.quantization.placement import OBSERVER_NAMES, PLACEMENTS, ROUNDING_NAMES
from hasten.recipe import Stage, check_options, option
from hasten.task import calibration_inputs

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task


@dataclass(frozen=True)
class Quantize:
    """Weights per output channel and symmetric, activations per tensor, biases as 32-bit accumulators."""

    stage: ClassVar[Stage] = Stage.QUANTIZE

    weights: Literal["int8", "fp8"] = option(
        "int8", "what weights are stored as; fp8 (e4m3) for GPUs that multiply it", choices=("int8", "fp8")
    )
    activations: Literal["int8", "int8_dynamic", "fp8"] = option(
        "int8",
        "ranges from calibration, or, for linear layers alone, of every tensor as it comes; fp8 goes with fp8 weights, "
        "and looks at `samples` and `keep_float` alone",
        choices=("int8", "int8_dynamic", "fp8"),
    )
    placement: str = option(
        "fuse_clamps", "where quantize/dequantize nodes stand: the target says", choices=tuple(PLACEMENTS)
    )
    observer: str = option("min_max", "how the range of an activation is chosen", choices=OBSERVER_NAMES)
    weight_bits: int = option(8, "7 for CPUs whose 8-bit products saturate 16-bit sums", choices=(8, 7))
    samples: int = option(256, "calibration samples to look at", low=1)
    keep_float: tuple[str, ...] = option((), "names of layers (nodes of the captured graph) that stay in float")

    rounding: Literal["gptq", "adaround", "nearest"] = option(
        "gptq", "round weights against the data (greedily, or by learning), or to the nearest", choices=ROUNDING_NAMES
    )
    bias_correction: bool = option(True, "let biases make up for the mean error of rounding")

    def __post_init__(self) -> None:
        check_options(self)
        if (self.weights == "fp8") != (self.activations == "fp8"):
            raise InvalidInput(
                "`weights` and `activations` must both be fp8 or neither, but got "
                f"{self.weights!r} and {self.activations!r}."
            )
        if self.activations == "int8_dynamic" and not PLACEMENTS[self.placement].dynamic:
            able = ", ".join(name for name, placement in PLACEMENTS.items() if placement.dynamic)
            raise InvalidInput(
                f"`activations` int8_dynamic must come with a placement for it ({able}), but got {self.placement!r}."
            )

    def apply(self, graph: "GraphModule", task: "Task") -> "GraphModule":
        """Return a copy with quantize/dequantize operators, its weights stored as int8; or with casts to fp8.

        Raises:
            Unsupported: Nothing in the graph can run on integers.
        """
        from hasten.quantization.dynamic import quantize_dynamically
        from hasten.quantization.fp8 import quantize_to_fp8
        from hasten.quantization.static import Scheme, first_samples, quantize_statically

        batches = first_samples(calibration_inputs(task), self.samples)
        if self.activations == "fp8":
            return quantize_to_fp8(graph, task.example, batches, self.keep_float)
        if self.activations == "int8_dynamic":
            return quantize_dynamically(
                graph,
                task.example,
                batches,
                weight_bits=self.weight_bits,
                keep_float=self.keep_float,
                rounding=self.rounding,
                bias_correction=self.bias_correction,
            )
        scheme = Scheme(
            PLACEMENTS[self.placement],
            self.observer,
            self.weight_bits,
            self.keep_float,
            self.rounding,
            self.bias_correction,
        )
        return quantize_statically(graph, task.example, batches, scheme)
