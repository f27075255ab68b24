"""What the user brings: a `Task` (model, data, score) and a `Budget` (what may be lost, how long it may take).

Both are checked at the door, so that everything behind it can trust them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hasten.errors import InvalidInput, unknown
from hasten.judged import check_limits

Inputs = tuple[Tensor, ...]
Outputs = Tensor | tuple[Tensor, ...]
Loss = Callable[[Any, Any], Tensor]
Score = Callable[[Any, Any], Tensor]
Metric = Callable[[Any, Any], Any]

OBJECTIVES = ("latency", "throughput", "size", "energy")


@dataclass(frozen=True)
class Task:
    """A trained model, the data to judge it by, and how to judge.

    Attributes:
        model: Trained module. It is only captured once, in eval mode, and never changed.
        example: One batch of positional inputs, batch first.
        holdout: Re-iterable of `(inputs, target)` batches in a fixed order; `inputs` is a tensor or a tuple of
            tensors. hasten splits it: one part steers the search, the other only certifies. Without labels the
            batches are `(inputs, None)` or a bare inputs tensor, and the original's own output becomes the target.
        train: Re-iterable of batches like those of `holdout`, for recovery by training. None: no training data.
        calibration: Re-iterable of inputs alone (a tensor or a tuple of tensors). None: drawn from `train`, else
            from the search part of `holdout`.
        loss: `loss(output, target) -> scalar tensor`. None: cross entropy.
        score: `score(output, target) -> [N]`, one number per sample, higher is better. None: top-1.
        metric: In place of `score`, for what is no mean over samples: F1, area under a curve, rank correlation, mean
            average precision. `metric(outputs, targets)` gives one number for a whole set, higher is better. It is
            computed 200 times for each candidate, leaving out a part of the set each time.
        preprocess: Module that turns raw inputs into the model's, `model(*preprocess(*inputs))`: resizing, normalising,
            layout, uint8 to float. It is compiled into the artifact. `example`, `holdout`, `train` and `calibration`
            then hold raw inputs.
        postprocess: Module that is called with the model's outputs, one argument each: softmax, top-k, pooling. It is
            compiled into the artifact, and `score` or `metric` judges what it returns; `loss` keeps judging the model's
            output.
        name: Shown in reports.

    Techniques see neither module: they work on `inner`, so pruning and quantization leave both as they are.

    `output` is what the captured graph returns: a tensor, or a tuple of tensors when the model returns several.

    Raises:
        InvalidInput: A field breaks its rule.
    """

    model: nn.Module
    example: Inputs
    holdout: Iterable[Any]
    train: Iterable[Any] | None = None
    calibration: Iterable[Any] | None = None
    loss: Loss | None = None
    score: Score | None = None
    metric: Metric | None = None
    preprocess: nn.Module | None = None
    postprocess: nn.Module | None = None
    name: str = "task"

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise InvalidInput(f"`model` must be a torch.nn.Module, but got {_kind(self.model)}.")
        if isinstance(self.example, Tensor):
            object.__setattr__(self, "example", (self.example,))
        if not isinstance(self.example, tuple) or not self.example or not _all_tensors(self.example):
            raise InvalidInput(
                f"`example` must be a tuple of tensors, one batch of inputs, but got {_kind(self.example)}."
            )
        sizes = {tuple(x.shape[:1]) for x in self.example}
        if len(sizes) != 1 or not next(iter(sizes)) or next(iter(sizes))[0] < 1:
            raise InvalidInput(
                "`example` must hold tensors with the same batch size of at least 1 in dimension 0, "
                f"but got shapes {[tuple(x.shape) for x in self.example]}."
            )
        for name in ("holdout", "train", "calibration"):
            _check_reiterable(name, getattr(self, name), required=name == "holdout")
        if self.score is not None and self.metric is not None:
            raise InvalidInput("`score` or `metric` must be left out, but got both: one of them judges.")
        for name in ("loss", "score", "metric"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise InvalidInput(f"`{name}` must be callable as {name}(output, target), but got {_kind(value)}.")
        for name in ("preprocess", "postprocess"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, nn.Module):
                raise InvalidInput(f"`{name}` must be a torch.nn.Module or None, but got {_kind(value)}.")

    @property
    def inner(self) -> "Task":
        """This task as the model itself sees it: inputs after `preprocess`, outputs before `postprocess`.

        What to capture and to hand to techniques; the task itself when it has neither module. Batches are preprocessed
        whenever they are read. `score` judges the output after `postprocess`.

        Raises:
            InvalidInput: `preprocess` does not turn `example` into inputs.
        """
        from hasten.graph.fuse import without_fused

        return without_fused(self)


@dataclass(frozen=True)
class Budget:
    """What may be lost, how long the search may take, and what it is after.

    Attributes:
        max_drop: Largest accepted drop of the mean score or of the metric, in its own unit (0.01 is one point of
            accuracy).
        confidence: Confidence of the certificate, one-sided.
        minutes: Wall time for the search. None: until there is nothing left to try.
        finalists: How many candidates may take the certifying test, one after the other from safe to bold. Each has an
            equal share of the error, and hands it on to the next when it passes.
        max_latency_ms: Largest accepted median latency at batch 1. None: any.
        max_size_bytes: Largest accepted size of the target's files. None: any.
        objective: What is to be as good as possible: "latency" at batch 1, "throughput" at the best batch, "size" of
            the target's files, or "energy" per call at batch 1, where this machine has a counter for it.
        training: Whether candidates may be trained. False: runtimes, precisions and post-training quantization only.
        limits: For targets that are judged, not timed: the most that is accepted of quantities of `hasten.judged`
            (of those in `judged.AT_LEAST` the least), by name. What is sought is then the most room under them.

    Raises:
        InvalidInput: A field is outside its range.
    """

    max_drop: float = 0.01
    confidence: float = 0.95
    minutes: float | None = None
    finalists: int = 3
    max_latency_ms: float | None = None
    max_size_bytes: int | None = None
    objective: str = "latency"
    training: bool = True
    limits: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.max_drop < float("inf"):
            raise InvalidInput(f"`max_drop` must be above 0, but got {self.max_drop}; 0.01 is one point of accuracy.")
        if not 0.5 <= self.confidence < 1:
            raise InvalidInput(f"`confidence` must be in [0.5, 1), but got {self.confidence}; 0.95 is usual.")
        if self.minutes is not None and not self.minutes > 0:
            raise InvalidInput(f"`minutes` must be above 0, but got {self.minutes}.")
        if self.finalists < 1:
            raise InvalidInput(f"`finalists` must be at least 1, but got {self.finalists}.")
        for name in ("max_latency_ms", "max_size_bytes"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise InvalidInput(f"`{name}` must be above 0, but got {limit}.")
        if self.objective not in OBJECTIVES:
            raise unknown("objective", self.objective, OBJECTIVES)
        check_limits(self.limits)
        if self.limits and (self.objective != "latency" or self.max_latency_ms is not None):
            raise InvalidInput(
                "`objective` and `max_latency_ms` must be left out beside `limits`, because what is judged is not "
                f"timed, but got {self.objective!r} and {self.max_latency_ms}."
            )


def labelled(batches: Iterable[Any], field: str = "holdout") -> Iterator[tuple[Inputs, Any]]:
    """Yield `(inputs, target)` from the batches of a `holdout` or `train` loader; target None means unlabelled.

    Raises:
        InvalidInput: A batch has the wrong form, or inputs and target differ in length.
    """
    for index, batch in enumerate(batches):
        pair = (batch, None) if isinstance(batch, Tensor) else batch
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InvalidInput(
                f"`{field}` must yield (inputs, target) pairs, but batch {index} is {_kind(batch)}. "
                "For a model with several inputs yield ((a, b), target); without labels yield (inputs, None)."
            )
        inputs = as_inputs(pair[0], field, index)
        target = pair[1]
        if isinstance(target, Tensor) and (target.ndim == 0 or len(target) != len(inputs[0])):
            raise InvalidInput(
                f"`{field}` must yield one target per sample, but batch {index} has {len(inputs[0])} inputs "
                f"and a target of shape {tuple(target.shape)}."
            )
        yield inputs, target


def unlabelled(batches: Iterable[Any], field: str = "calibration") -> Iterator[Inputs]:
    """Yield the inputs of a `calibration` loader as tuples of tensors."""
    for index, batch in enumerate(batches):
        yield as_inputs(batch, field, index)


def calibration_inputs(task: Task, samples: int | None = None) -> Iterator[Inputs]:
    """The inputs to calibrate on: `task.calibration`, else the inputs of `task.train`, else of `task.holdout`.

    With `samples`, only as many of the first batches as hold that many samples.

    `hasten.run` hands techniques a task whose `holdout` is the search part alone, so that the certifying part never
    reaches a technique.
    """
    if task.calibration is not None:
        batches = unlabelled(task.calibration)
    else:
        field = "holdout" if task.train is None else "train"
        batches = (inputs for inputs, _ in labelled(getattr(task, field), field))
    seen = 0
    for inputs in batches:
        yield inputs
        seen += len(inputs[0])
        if samples is not None and seen >= samples:
            return


def as_inputs(value: Any, field: str, index: int) -> Inputs:
    """`value` as a tuple of tensors of one length; `field` and `index` name the batch in the error."""
    inputs = (value,) if isinstance(value, Tensor) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if not inputs or not _all_tensors(inputs) or any(x.ndim == 0 or len(x) != len(inputs[0]) for x in inputs):
        raise InvalidInput(
            f"`{field}` must yield inputs as a tensor or a tuple of tensors with one batch size, "
            f"but batch {index} holds {_kind(value)}."
        )
    return inputs


def _check_reiterable(field: str, value: Any, required: bool) -> None:
    if value is None and not required:
        return
    if not isinstance(value, Iterable):
        raise InvalidInput(f"`{field}` must be an iterable of batches, but got {_kind(value)}.")
    if isinstance(value, Iterator):
        raise InvalidInput(
            f"`{field}` must be iterable more than once, but got a one-shot {type(value).__name__}. "
            "Pass a DataLoader or a list of batches."
        )


def _all_tensors(values: Iterable[Any]) -> bool:
    return all(isinstance(x, Tensor) for x in values)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {[_kind(x) for x in value[:4]]}"
    return f"{value!r:.60} of type {type(value).__name__}"


def default_score(output: Any, target: Any) -> Tensor:
    """Top-1: 1.0 where the first output's argmax equals the target, [N].

    Target: [N] labels, or the original's [N, C] output when there are no labels: then it is the agreement with it.

    Raises:
        InvalidInput: A label that no output can be, or labels of another shape.
    """
    logits, reference = _first(output), _first(target)
    if reference.shape == logits.shape and reference.is_floating_point():
        reference = reference.argmax(-1)
    elif reference.shape != logits.shape[:-1]:
        raise InvalidInput(
            f"Labels must have the shape {tuple(logits.shape[:-1])}, one for each row of the model's output, but got "
            f"{tuple(reference.shape)}. Reshape them, or pass `score=` to the task."
        )
    elif wrong := reference[(reference < 0) | (reference >= logits.shape[-1])].tolist():
        raise InvalidInput(
            f"Labels must be numbers from 0 to {logits.shape[-1] - 1}, one for each output of the model, but got "
            f"{wrong[0]}. Count classes from 0, or pass `score=` to the task."
        )
    agree = (logits.argmax(-1) == reference).to(torch.float32)
    return agree.flatten(1).mean(1) if agree.ndim > 1 else agree


def cosine_similarity(output: Any, target: Any) -> Tensor:
    """Cosine of output and target vectors, [N, D] x [N, D] -> [N]; the usual score of embeddings without labels."""
    vectors, reference = _first(output).flatten(1).float(), _first(target).flatten(1).float()
    return torch.nn.functional.cosine_similarity(vectors, reference)


def _first(value: Any) -> Tensor:
    """The tensor that is meant when a model returns several."""
    tensor: Tensor = value[0] if isinstance(value, tuple) else value
    return tensor
