"""Train the graph to answer like the original: recovery after pruning, or a smaller student."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule

from hasten.distillation.defaults import usual_optimizer, usual_rate
from hasten.distillation.features import FeatureDistance, Pair, pair_by_depth, pair_last
from hasten.distillation.objective import Objective
from hasten.distillation.structure import LossName, default_loss
from hasten.distillation.teacher import AnswerCache, Pairs, TeacherBatches, is_random, teacher_key
from hasten.errors import InvalidInput, Unsupported
from hasten.graph.capture import as_tuple, capture
from hasten.graph.duplicate import move
from hasten.graph.taps import tap, untap
from hasten.recipe import Stage, check_options, option
from hasten.task import Task
from hasten.training import Training, mean_score, task_loss, train
from hasten.training.device import pick_device, pick_dtype, takes_channels_last
from hasten.training.randomness import isolated

_LOSSES = ("auto", "kl", "mse", "dkd", "dist", "cosine")


@dataclass(frozen=True)
class Distill:
    """Train a graph on `task.train` with the original's answers; without labels, on the answers alone.

    The teacher is `task.model`, the student the graph: a pruned or quantized version of it, or any smaller network of
    the same outputs. Without `task.train` the inputs to calibrate on serve, without labels.

    Sources: Hinton et al. 2015 (kl), Ba and Caruana 2014 (mse), Zhao et al. 2022 (dkd), Huang et al. 2022 (dist),
    Romero et al. 2015 (hint), Zagoruyko and Komodakis 2017 (attention).

    Raises:
        InvalidInput: An option outside its range, or a node of `features` that does not exist.
        Unsupported: The student's output has another shape than the teacher's, or training diverges.
    """

    stage: ClassVar[Stage] = Stage.DISTILL

    temperature: float = option(4.0, "softens the answers of kl, dkd and dist", low=0.01)
    alpha: float = option(
        0.9, "weight of the teacher's answers; the rest is the task loss on labels", low=0.0, high=1.0
    )
    loss: Literal["auto", "kl", "mse", "dkd", "dist", "cosine"] = option(
        "auto",
        "distance to the answers; auto: kl for class scores, cosine for embeddings, else mse",
        choices=_LOSSES,
    )
    beta: float = option(2.0, "weight of the classes that are not the label's in dkd", low=0.0)
    features: Literal["none", "auto", "last"] | tuple[Pair, ...] = option(
        "none",
        "also match inner values: auto pairs them by depth, last takes what the last linear layer reads; "
        "or pairs of (student node, teacher node)",
    )
    feature_loss: Literal["hint", "attention"] = option(
        "hint", "values after a learned projection, or maps of where they are large", choices=("hint", "attention")
    )
    feature_weight: float = option(1.0, "weight of the inner values", low=0.0)
    epochs: int = option(3, "passes over the training batches", low=1)
    lr: float | None = option(
        None, "peak learning rate; null: 0.0001 for adamw, 0.01 for sgd, 0.003 where batch norm is frozen", low=0.0
    )
    optimizer: Literal["auto", "sgd", "adamw"] = option(
        "auto", "auto: adamw for networks with layer norm, else sgd", choices=("auto", "sgd", "adamw")
    )
    weight_decay: float = option(1e-4, "weight decay; spares biases and norms", low=0.0)
    clip_norm: float | None = option(5.0, "largest norm of the gradient; null: no clipping", low=0.0)
    schedule: Literal["cosine", "onecycle", "constant"] = option(
        "cosine", "learning rate over the run", choices=("cosine", "onecycle", "constant")
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "arithmetic of the forward pass", choices=("auto", "fp32", "bf16", "fp16")
    )
    freeze_batch_norm: bool = option(
        False, "keep batch norm on its running statistics, as where they were not of this data to begin with"
    )
    patience: int | None = option(
        None, "stop after this many epochs without a better score on the holdout, keep the best; null: never", low=1
    )
    max_steps: int | None = option(None, "stop after this many optimizer steps", low=1)
    stop_after: int | None = option(
        None, "stop after this many steps with the learning rates of the whole run, as a training cut short did", low=1
    )
    seed: int = option(0, "seeds shuffling, augmentation, dropout and projections", low=0)
    cache_gb: float = option(4.0, "keep the teacher's answers on disk up to this size; 0: never", low=0.0)
    folder: str | None = option(None, "where checkpoint and answers are kept for a resume; null: nowhere")

    def __post_init__(self) -> None:
        check_options(self)
        if isinstance(self.features, str) and self.features not in ("none", "auto", "last"):
            raise InvalidInput(
                "`features` must be 'none', 'auto', 'last' or pairs of (student node, teacher node), "
                f"but got {self.features!r}."
            )

    def apply(self, graph: GraphModule, task: Task) -> GraphModule:
        """A trained copy of `graph`."""
        device = pick_device("auto")
        teacher = capture(task.model, task.example)
        with torch.no_grad():
            own = as_tuple(graph(*task.example)), as_tuple(teacher(*task.example))
        _check_same_shape(own[0][0], own[1][0])
        batches = Pairs.of(task)
        with isolated():
            inputs, target = next(iter(batches))
        with torch.no_grad():
            name: LossName = default_loss(teacher(*inputs), target, task) if self.loss == "auto" else self.loss
        validate = None if self.patience is None else mean_score(task, teacher)
        pairs = self._pairs(graph, teacher, task)
        student = tap(graph, [pair[0] for pair in pairs]) if pairs else graph
        if pairs:
            teacher = tap(teacher, [pair[1] for pair in pairs])
        objective = Objective(
            name,
            task_loss(task),
            (len(own[0]), len(own[1])),
            temperature=self.temperature,
            alpha=self.alpha,
            beta=self.beta,
            features=self._feature_distance(student, teacher, task, len(pairs)),
            feature_weight=self.feature_weight,
        )
        layouts = takes_channels_last(graph, task.example), takes_channels_last(teacher, task.example)
        options = replace(self._training(graph), channels_last=layouts[0])
        move(teacher, device)
        if layouts[1]:
            teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(self.folder or temporary)
            wanted = (
                self.cache_gb > 0 and (self.epochs > 1 or self.folder is not None) and not is_random(batches.source)
            )
            path = folder / f"teacher-{teacher_key(teacher)}.rows"
            cache = AnswerCache(path, batches.samples(len(inputs[0])), self.cache_gb * 1e9) if wanted else None
            dtype = pick_dtype(self.precision, device, graph)
            answered = TeacherBatches(batches, teacher, device, dtype, cache, channels_last=layouts[1])
            trained = train(student, answered, objective, options, validate=_own_outputs(validate, len(own[0])))
        return untap(trained, len(own[0])) if pairs else trained

    def _pairs(self, graph: GraphModule, teacher: GraphModule, task: Task) -> tuple[Pair, ...]:
        if self.features == "none":
            return ()
        if self.features == "last":
            return pair_last(graph, teacher)
        if isinstance(self.features, str):
            return pair_by_depth(graph, teacher, task.example)
        return self.features

    def _feature_distance(
        self, student: GraphModule, teacher: GraphModule, task: Task, count: int
    ) -> FeatureDistance | None:
        if count == 0:
            return None
        with torch.no_grad():
            tapped = [as_tuple(model(*task.example))[-count:] for model in (student, teacher)]
        shapes = [(s.shape, t.shape) for s, t in zip(*tapped, strict=True)]
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return FeatureDistance(shapes, self.feature_loss)

    def _training(self, graph: GraphModule) -> Training:
        optimizer = usual_optimizer(graph) if self.optimizer == "auto" else self.optimizer
        return Training(
            epochs=self.epochs,
            lr=usual_rate(optimizer, self.freeze_batch_norm) if self.lr is None else self.lr,
            optimizer=optimizer,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            schedule=self.schedule,
            precision=self.precision,
            freeze_batch_norm=self.freeze_batch_norm,
            patience=self.patience,
            max_steps=self.max_steps,
            stop_after=self.stop_after,
            seed=self.seed,
            checkpoint=None if self.folder is None else Path(self.folder) / "training.pt",
        )


def _own_outputs(validate: Any, count: int) -> Any:
    """`validate` on a tapped model without its features."""
    if validate is None:
        return None

    class Own(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Tensor) -> Any:
            outputs = as_tuple(self.model(*inputs))[:count]
            return outputs[0] if count == 1 else outputs

    return lambda model: validate(Own(model))


def _check_same_shape(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise Unsupported(
            f"A student must give outputs shaped like the original's, but its first output is {tuple(student.shape)} "
            f"and the original's {tuple(teacher.shape)}. Give the student the same last layer."
        )
