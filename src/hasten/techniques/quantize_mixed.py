"""Mixed precision: as many layers as the accuracy allows in low precision, the most sensitive ones in a higher one.

Every layer's rounding alone is measured on calibration data; layers go back in the order of noise per cost until the
measured score passes. Integer layers left alone among float ones go back with them where conversions cost more than
they save.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hasten.quantization.placement import OBSERVER_NAMES, PLACEMENTS
from hasten.recipe import Stage, check_options, option
from hasten.task import calibration_inputs, labelled

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task


@dataclass(frozen=True)
class QuantizeMixed:
    """Int8 with the rest in the target's float precision, or weights of 4 bits with the rest at 8 bits."""

    stage: ClassVar[Stage] = Stage.QUANTIZE

    precision: Literal["int8", "int4_weights"] = option(
        "int8", "int8 layers among float ones, or 4-bit weights among 8-bit ones", choices=("int8", "int4_weights")
    )
    max_drop: float = option(0.005, "largest accepted drop of the mean score, measured on the holdout", low=0.0)
    judged: int = option(1024, "holdout samples that the score is measured on", low=1)
    placement: str = option(
        "fuse_clamps", "where quantize/dequantize nodes stand: the target says", choices=tuple(PLACEMENTS)
    )
    observer: str = option("min_max", "how the range of an activation is chosen", choices=OBSERVER_NAMES)
    group: int = option(32, "weights of 4 bits that share a scale", low=1)
    samples: int = option(256, "calibration samples to look at", low=1)
    sensitivity_samples: int = option(16, "calibration samples that every layer's noise is measured on", low=1)

    def __post_init__(self) -> None:
        check_options(self)

    def apply(self, graph: "GraphModule", task: "Task") -> "GraphModule":
        """Return a quantized copy whose measured drop is `max_drop` at most, with as little as possible left precise.

        Raises:
            Unsupported: Nothing can run on integers, or no mix keeps the score.
        """
        from hasten.quantization.mixed import by_noise_per_cost, fewest_precise
        from hasten.quantization.sensitivity import sensitivity
        from hasten.training import mean_score

        rounding: dict[str, Any] = (
            {} if self.precision == "int8" else {"weight_bits": 4, "group": self.group, "activations": False}
        )
        noise = sensitivity(graph, task, samples=self.sensitivity_samples, **rounding)
        order = by_noise_per_cost(noise, self._costs(graph, task))
        judged = dataclasses.replace(task, holdout=list(self._first(task)))
        score = mean_score(judged, graph)
        start = score(graph)
        quantize = self._int8 if self.precision == "int8" else self._int4_weights
        return fewest_precise(
            order, lambda kept: quantize(graph, task, kept), lambda g: start - score(g), self.max_drop
        )

    def _costs(self, graph: "GraphModule", task: "Task") -> dict[str, float]:
        """What a layer saves in low precision: time goes with products, memory with weights."""
        from hasten.graph.cost import node_costs
        from hasten.graph.parameters import tensor_of
        from hasten.quantization.static import inference_form

        reference = inference_form(graph, task.example)
        if self.precision == "int8":
            return {name: cost.macs for name, cost in node_costs(reference).items()}
        sizes = {}
        for node in reference.graph.nodes:
            weight = tensor_of(reference, node.args[1]) if len(node.args) > 1 else None
            sizes[node.name] = float(weight.numel()) if weight is not None else 0.0
        return sizes

    def _int8(self, graph: "GraphModule", task: "Task", kept: tuple[str, ...]) -> "GraphModule":
        from hasten.quantization.islands import islands
        from hasten.quantization.static import Scheme, first_samples, inference_form, quantize_statically

        placement = PLACEMENTS[self.placement]
        alone = islands(inference_form(graph, task.example), placement, frozenset(kept)) if kept else frozenset()
        scheme = Scheme(placement, self.observer, keep_float=(*kept, *sorted(alone)))
        batches = first_samples(calibration_inputs(task), self.samples)
        return quantize_statically(graph, task.example, batches, scheme)

    def _int4_weights(self, graph: "GraphModule", task: "Task", kept: tuple[str, ...]) -> "GraphModule":
        from hasten.quantization.weights import WeightScheme, quantize_weights

        scheme = WeightScheme(bits=4, group=self.group, wide=kept)
        return quantize_weights(graph, task.example, calibration_inputs(task), self.samples, scheme)

    def _first(self, task: "Task") -> Iterator[Any]:
        left = self.judged
        for inputs, target in labelled(task.holdout):
            if left <= 0:
                return
            yield inputs, target
            left -= len(inputs[0])
