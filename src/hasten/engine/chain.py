"""Engines one behind the other: the rows of a split model, overlapped, each stage on its own device."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

import numpy as np

from hasten.engine.engine import Engine
from hasten.engine.runner import Runner
from hasten.errors import InvalidInput

Outputs = tuple[np.ndarray, ...]


class Chain:
    """A pipeline of engines: the outputs of one are the inputs of the next; a context manager.

    While the second works on one batch, the first works on the next. Every stage batches, schedules and recovers as an
    engine does.

    Args:
        stages: Artifacts or runners, at least two, each taking what the one before answers.
        options: Options of `Engine`, for every stage.

    Attributes:
        stages: The engines.

    Raises:
        InvalidInput: Fewer than two stages, or two that do not fit.
    """

    def __init__(self, *stages: str | os.PathLike[str] | Runner, **options: Any) -> None:
        if len(stages) < 2:
            raise InvalidInput(f"A chain must have at least two stages, but got {len(stages)}. Use an Engine.")
        self.stages: list[Engine] = []
        try:
            for stage in stages:
                self.stages.append(Engine(stage, **options))
            for first, second in zip(self.stages, self.stages[1:], strict=False):
                _check_fit(first, second)
        except BaseException:
            self.close(drain_s=0.0)
            raise
        self.inputs = self.stages[0].inputs
        self.outputs = self.stages[-1].outputs

    def __call__(self, *inputs: Any) -> Outputs:
        """Answer one request and wait for it."""
        return self.submit(*inputs).result()

    def submit(self, *inputs: Any) -> "Future[Outputs]":
        """Queue one request of any number of rows; see `Engine.submit`."""
        final: Future[Outputs] = Future()
        final.set_running_or_notify_cancel()

        def forward(index: int, arrays: Iterable[Any]) -> None:
            def done(future: "Future[Outputs]") -> None:
                error = future.exception()
                if error is None and index + 1 < len(self.stages):
                    try:
                        forward(index + 1, future.result())
                    except Exception as refused:
                        final.set_exception(refused)
                elif error is not None:
                    final.set_exception(error)
                else:
                    final.set_result(future.result())

            self.stages[index].submit(*arrays).add_done_callback(done)

        forward(0, inputs)
        return final

    def map(self, source: Iterable[Any]) -> Iterator[Outputs]:
        """Answer a stream in order, looking only a few rounds ahead; see `Engine.map`."""
        stream: Iterable[Any] = source
        for stage in self.stages:
            stream = stage.map(stream)
        return iter(stream)

    def statistics(self) -> list[dict[str, Any]]:
        """Of every stage, in order; see `Engine.statistics`."""
        return [stage.statistics() for stage in self.stages]

    def close(self, *, drain_s: float = 30.0) -> None:
        """Answer what was taken, first stage first, then stop."""
        for stage in self.stages:
            stage.close(drain_s=drain_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(drain_s=30.0 if error is None else 0.0)


def _check_fit(first: Engine, second: Engine) -> None:
    given = [(y["dtype"], tuple(y["shape"][1:])) for y in first.outputs]
    wanted = [(x["dtype"], tuple(x["shape"][1:])) for x in second.inputs]
    if given and wanted and given != wanted:
        raise InvalidInput(f"A stage must take what the one before answers, but {given} meets {wanted}.")
