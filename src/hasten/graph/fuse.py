"""A task's pre- and postprocessing: taken off for the techniques, put around the graph that is compiled."""

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from hasten.errors import InvalidInput
from hasten.graph.capture import as_tuple, capture, capture_as_is, has_dynamic_batch, placeholders
from hasten.graph.duplicate import duplicate
from hasten.task import Inputs, Metric, Outputs, Task, default_score, labelled, unlabelled


def without_fused(task: Task) -> Task:
    """`task` as its model itself sees it; see `Task.inner`."""
    if task.preprocess is None and task.postprocess is None:
        return task
    before = _Before(task.preprocess)
    after = None if task.postprocess is None else _After(task.postprocess)
    judge = task.metric or task.score or default_score
    judging: dict[str, Any] = {} if after is None else {"metric" if task.metric else "score": _JudgeAfter(judge, after)}
    return replace(
        task,
        example=before(task.example),
        holdout=_Labelled(task.holdout, "holdout", before, None if after is None else _Answers(task.model, after)),
        train=None if task.train is None else _Labelled(task.train, "train", before),
        calibration=None if task.calibration is None else _Unlabelled(task.calibration, before),
        preprocess=None,
        postprocess=None,
        **judging,
    )


def fuse(graph: GraphModule, task: Task) -> GraphModule:
    """`graph` with `task.preprocess` in front of it and `task.postprocess` behind it, as one graph.

    Args:
        graph: The captured model, as it is or changed by techniques; not changed.
        task: Holds the two modules and raw inputs as `example`; without the modules `graph` is returned as it is.

    Raises:
        InvalidInput: The modules do not fit the graph, cannot be captured, or the default score would not fit what
            `postprocess` returns.
    """
    if task.preprocess is None and task.postprocess is None:
        return graph
    before = _Before(task.preprocess)
    inputs = before(task.example)
    wanted = [(tuple(x.meta["val"].shape[1:]), x.meta["val"].dtype) for x in placeholders(graph)]
    if [(tuple(x.shape[1:]), x.dtype) for x in inputs] != wanted:
        raise InvalidInput(
            f"`preprocess` must return the inputs that the graph was captured with, {wanted}, but returns "
            f"{[(tuple(x.shape[1:]), x.dtype) for x in inputs]}. Capture with `task.inner.example`."
        )
    with torch.no_grad():
        _check_scorable(task, as_tuple(graph(*inputs)))
    names = [node.name for node in placeholders(graph)] if task.preprocess is None else _names(task.preprocess)
    whole = _Whole(task.preprocess, graph, task.postprocess)
    named = _with_names(whole, names, len(task.example))
    return capture_as_is(named, task.example, dynamic=has_dynamic_batch(graph))


def _check_scorable(task: Task, outputs: Inputs) -> None:
    """The default score compares classes, so it fits only what still has them."""
    if task.postprocess is None:
        return
    found = _After(task.postprocess)(outputs if len(outputs) > 1 else outputs[0])
    first = as_tuple(found)[0]
    if task.score is None and task.metric is None and first.shape != outputs[0].shape:
        raise InvalidInput(
            f"`score` or `metric` must be given when `postprocess` changes the shape of the first output, but it turns "
            f"{tuple(outputs[0].shape)} into {tuple(first.shape)} and both are None."
        )


class _Whole(nn.Module):
    def __init__(self, preprocess: nn.Module | None, graph: nn.Module, postprocess: nn.Module | None) -> None:
        super().__init__()
        self.preprocess = None if preprocess is None else duplicate(preprocess).eval()
        # A captured graph refuses to be put into a mode; it is in evaluation mode.
        self.model = graph
        self.postprocess = None if postprocess is None else duplicate(postprocess).eval()

    def forward(self, *inputs: Tensor) -> Any:
        model_inputs = inputs if self.preprocess is None else _listed(self.preprocess(*inputs))
        outputs = self.model(*model_inputs)
        return outputs if self.postprocess is None else self.postprocess(*as_tuple(outputs))


def _names(module: nn.Module) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds]


def _with_names(module: _Whole, names: list[str], count: int) -> _Whole:
    """`module` with inputs that are called `names`, which become the artifact's; `*inputs` has none to give."""
    if len(names) < count:
        return module

    class Named(_Whole):
        pass

    def forward(self: _Whole, *inputs: Tensor) -> Any:
        return _Whole.forward(self, *inputs)

    parameters = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ["self", *names[:count]]]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    Named.forward = forward  # type: ignore[method-assign]
    module.__class__ = Named
    return module


class _Before:
    """Raw inputs to the model's."""

    def __init__(self, module: nn.Module | None) -> None:
        self._module = None if module is None else duplicate(module).eval()

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> Inputs:
        if self._module is None:
            return inputs
        try:
            found = _listed(self._module(*inputs))
        except Exception as error:
            raise InvalidInput(
                f"`preprocess` must run on raw inputs of shapes {[tuple(x.shape) for x in inputs]}, but raised "
                f"{type(error).__name__}: {str(error)[:300]}"
            ) from error
        if not all(isinstance(x, Tensor) and x.ndim and len(x) == len(inputs[0]) for x in found):
            raise InvalidInput(
                "`preprocess` must return a tensor, or a tuple of tensors, with one row per row of its inputs."
            )
        return found


class _After:
    """The model's output to what the artifact answers."""

    def __init__(self, module: nn.Module) -> None:
        self._module = duplicate(module).eval()

    @torch.no_grad()
    def __call__(self, output: Any) -> Outputs:
        try:
            found = self._module(*as_tuple(output))
        except Exception as error:
            raise InvalidInput(
                f"`postprocess` must run on the model's outputs, but raised {type(error).__name__}: {str(error)[:300]}"
            ) from error
        return tuple(found) if isinstance(found, (tuple, list)) else found


class _Answers:
    """The target of samples without a label: what the original answers after `postprocess`."""

    def __init__(self, model: nn.Module, after: _After) -> None:
        self._model, self._after = model, after
        self._graph: GraphModule | None = None

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> Outputs:
        self._graph = self._graph or capture(self._model, inputs)
        return self._after(self._graph(*inputs))


class _JudgeAfter:
    """A score or metric of what `postprocess` makes of the output."""

    def __init__(self, judge: Metric, after: _After) -> None:
        self._judge, self._after = judge, after

    def __call__(self, output: Any, target: Any) -> Any:
        return self._judge(self._after(output), target)


class _Labelled(Iterable[Any]):
    """(inputs, target) batches with their inputs preprocessed; iterating again preprocesses again."""

    def __init__(self, batches: Iterable[Any], field: str, before: _Before, answers: _Answers | None = None) -> None:
        self._batches, self._field, self._before, self._answers = batches, field, before, answers

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        for raw, target in labelled(self._batches, self._field):
            inputs = self._before(raw)
            yield inputs, self._answers(inputs) if target is None and self._answers is not None else target

    def __len__(self) -> int:
        """Batches, where the loader knows."""
        return len(self._batches)  # type: ignore[arg-type]


class _Unlabelled(Iterable[Any]):
    """Inputs, preprocessed."""

    def __init__(self, batches: Iterable[Any], before: _Before) -> None:
        self._batches, self._before = batches, before

    def __iter__(self) -> Iterator[Inputs]:
        return (self._before(raw) for raw in unlabelled(self._batches))

    def __len__(self) -> int:
        """Batches, where the loader knows."""
        return len(self._batches)  # type: ignore[arg-type]


def _listed(value: Any) -> Inputs:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
