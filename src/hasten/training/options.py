"""The options of a training run, stated once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hasten.recipe import check_options, option

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Training:
    """How to train. Steps are optimizer steps; a step sees `accumulate` batches.

    Raises:
        InvalidInput: An option is outside its choices or range.
    """

    epochs: int = option(1, "passes over the training batches", low=1)
    lr: float = option(0.01, "peak learning rate", low=0.0)
    optimizer: Literal["sgd", "adamw"] = option("sgd", "SGD with Nesterov momentum, or AdamW", choices=("sgd", "adamw"))
    momentum: float = option(0.9, "momentum of SGD", low=0.0, high=1.0, open_high=True)
    weight_decay: float = option(1e-4, "weight decay; spares biases and norms (tensors below two dimensions)", low=0.0)
    schedule: Literal["cosine", "onecycle", "constant"] = option(
        "cosine", "learning rate over the run", choices=("cosine", "onecycle", "constant")
    )
    warmup: float = option(0.0, "share of the steps with a linearly rising rate", low=0.0, high=1.0, open_high=True)
    clip_norm: float | None = option(None, "largest norm of the gradient over all parameters; null: no clipping", low=0)
    accumulate: int = option(1, "batches whose gradients are averaged into one step", low=1)
    ema: float | None = option(
        None, "decay of the moving average of the weights, which is then the result", low=0.0, high=1.0, open_high=True
    )
    precision: Precision = option(
        "auto",
        "arithmetic of the forward pass; auto: bf16 where the device computes in it, else fp16 on a GPU, else fp32",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    freeze_batch_norm: bool = option(False, "keep batch norm on its running statistics")
    channels_last: bool = option(False, "NHWC memory layout for image tensors; a graph with `view` may refuse it")
    patience: int | None = option(
        None, "stop after this many epochs without a better validation score and return the best; null: never", low=1
    )
    max_steps: int | None = option(None, "stop after this many steps, even within an epoch", low=1)
    stop_after: int | None = option(
        None, "stop after this many steps with the learning rates of the whole run, as a training cut short did", low=1
    )
    seed: int = option(0, "seeds shuffling, augmentation and dropout", low=0)
    device: str = option("auto", "torch device; auto: cuda, else cpu")
    checkpoint: Path | None = option(None, "file to write the state to after every epoch and to resume from")
    checkpoint_every: int | None = option(None, "also write it every this many steps", low=1)
    progress: bool = option(True, "show loss and remaining time; only on a terminal")

    def __post_init__(self) -> None:
        check_options(self)
