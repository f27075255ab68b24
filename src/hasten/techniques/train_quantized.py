"""Quantization-aware training: fine-tune the weights while they and the activations are rounded as they will be.

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", section 3. Unlike there, batch norm is folded before training and the ranges of activations stay as
calibrated, so that what is trained is, number for number, what is written to the file.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from hasten.quantization.placement import OBSERVER_NAMES, PLACEMENTS
from hasten.recipe import Stage, check_options, option
from hasten.task import calibration_inputs

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from hasten.task import Task
    from hasten.training import Training


@dataclass(frozen=True)
class TrainQuantized:
    """Quantize like `Quantize` does, and train; the teacher is the float network that is to be quantized."""

    stage: ClassVar[Stage] = Stage.QUANTIZE

    placement: str = option(
        "fuse_clamps", "where quantize/dequantize nodes stand: the target says", choices=tuple(PLACEMENTS)
    )
    observer: str = option("min_max", "how the range of an activation is chosen", choices=OBSERVER_NAMES)
    weight_bits: int = option(8, "bits of the weights, stored as int8", choices=(8, 7, 6, 4, 3))
    samples: int = option(256, "calibration samples to look at", low=1)
    keep_float: tuple[str, ...] = option((), "names of layers (nodes of the captured graph) that stay in float")
    epochs: int = option(2, "passes over the training batches", low=1)
    lr: float = option(1e-3, "peak learning rate; a tenth of what trained the network is usual", low=0.0)
    optimizer: Literal["sgd", "adamw"] = option("sgd", "SGD with momentum, or AdamW", choices=("sgd", "adamw"))
    alpha: float = option(0.9, "weight of the float network's answers; the rest is the task loss", low=0.0, high=1.0)
    max_steps: int | None = option(None, "stop after this many optimizer steps", low=1)
    stop_after: int | None = option(
        None, "stop after this many steps with the learning rates of the whole run, as a training cut short did", low=1
    )
    seed: int = option(0, "seeds shuffling and augmentation", low=0)

    def __post_init__(self) -> None:
        check_options(self)

    def apply(self, graph: "GraphModule", task: "Task") -> "GraphModule":
        """Return a copy with quantize/dequantize operators and trained weights.

        Raises:
            Unsupported: Nothing in the graph can run on integers, or training diverges.
        """
        from hasten.quantization.static import Scheme, calibrate, convert, first_samples, inference_form, prepare
        from hasten.quantization.training import start_rounding, train_rounded

        scheme = Scheme(PLACEMENTS[self.placement], self.observer, self.weight_bits, self.keep_float)
        teacher = inference_form(graph, task.example)
        student = prepare(teacher, scheme)
        calibrate(student, first_samples(calibration_inputs(task), self.samples))
        start_rounding(student)
        return convert(train_rounded(student, teacher, task, self.alpha, self._training()))

    def _training(self) -> "Training":
        from hasten.training import Training

        return Training(
            epochs=self.epochs,
            lr=self.lr,
            optimizer=self.optimizer,
            # Rounding in half precision would not be the rounding of the file.
            precision="fp32",
            clip_norm=5.0,
            max_steps=self.max_steps,
            stop_after=self.stop_after,
            seed=self.seed,
        )
