"""Batch-norm re-estimation: measure anew the mean and variance that batch norm divides out, after weights changed.

Pruned or rounded weights shift every layer's output, while batch norm still takes away the old mean. Source: Li et al.
2020, "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning", section 3.3 (adaptive batch norm).
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
class ReestimateBatchNorm:
    """Statistics of all calibration samples together, layer by layer behind the layers already re-estimated.

    Quantization folds batch norm into the weights, so this comes before it; behind it, bias correction does the same.
    """

    # Wherever training could stand: after pruning, before or after distillation, before quantization.
    stage: ClassVar[Stage] = Stage.DISTILL

    samples: int = option(512, "calibration samples to look at, as one batch", low=2)

    def __post_init__(self) -> None:
        check_options(self)

    def apply(self, graph: "GraphModule", task: "Task") -> "GraphModule":
        """Return a copy whose batch norms hold the statistics of the calibration data.

        Raises:
            Unsupported: The graph has no batch norm with running statistics.
        """
        from hasten.graph.duplicate import duplicate
        from hasten.quantization.static import one_batch
        from hasten.quantization.statistics import reestimate

        graph = duplicate(graph)
        if not reestimate(graph, one_batch(calibration_inputs(task), self.samples)):
            raise Unsupported("The graph has no batch norm with running statistics that could be estimated again.")
        return graph
