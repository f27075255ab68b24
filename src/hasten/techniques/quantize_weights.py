"""Weight-only quantization: weights stay integers in memory, activations in float; for models bound by memory.

Runtimes with a packed kernel (ONNX Runtime's MatMulNBits, OpenVINO's compressed weights) read 4 or 8 bits per weight
of a linear layer. Powers of two: see `hasten.quantization.logarithmic`; linear: see `hasten.quantization.linear`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from hasten.errors import InvalidInput
from hasten.quantization.placement import ROUNDING_NAMES
from hasten.recipe import Stage, check_options, option

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task


@dataclass(frozen=True)
class QuantizeWeights:
    """Round the weights of convolutions and linear layers to symmetric integers, and embeddings to int8 per row."""

    stage: ClassVar[Stage] = Stage.QUANTIZE

    scheme: Literal["linear", "power_of_two"] = option(
        "linear", "equal steps, or a sign and a power of two", choices=("linear", "power_of_two")
    )
    bits: int = option(8, "width of the integers; powers of two: 4, 3 or 2", choices=(8, 6, 4, 3, 2))
    group: int | None = option(
        None, "weights that share a scale, 32 or 128 for packed kernels; None, or where it does not divide: a channel",
        low=1,
    )  # fmt: skip
    embeddings: bool = option(True, "also store embedding tables as int8 with a scale per row")
    rounding: Literal["gptq", "adaround", "nearest"] = option(
        "gptq", "round weights against the data (greedily, or by learning), or to the nearest", choices=ROUNDING_NAMES
    )
    bias_correction: bool = option(True, "let biases make up for the mean error of rounding")
    samples: int = option(64, "calibration samples that rounding and biases look at", low=1)
    keep_float: tuple[str, ...] = option((), "names of layers (nodes of the captured graph) that stay in float")

    def __post_init__(self) -> None:
        check_options(self)
        if self.scheme == "power_of_two" and (self.bits > 4 or self.group is not None):
            raise InvalidInput(
                "`scheme` power_of_two must have `bits` of 4, 3 or 2 and no `group`, "
                f"but got {self.bits} and {self.group!r}. More bits would only add powers below 1/64."
            )

    def apply(self, graph: "GraphModule", task: "Task") -> "GraphModule":
        """Return a copy with integer weights behind dequantize operators.

        Raises:
            Unsupported: The graph has no convolution or linear layer to round, or a name in `keep_float` is not in it.
        """
        from hasten.quantization.weights import WeightScheme, quantize_weights
        from hasten.task import calibration_inputs

        scheme = WeightScheme(
            self.scheme,
            self.bits,
            self.group,
            self.embeddings,
            self.rounding,
            self.bias_correction,
            self.keep_float,
        )
        return quantize_weights(graph, task.example, calibration_inputs(task), self.samples, scheme)
