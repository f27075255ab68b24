"""The models that are served, by name and version: admission, answers, counters, reloading without a lost request."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hasten.engine.engine import Engine
from hasten.engine.request import checked_inputs
from hasten.errors import HastenError, InvalidInput, unknown
from hasten.serve.regions import Regions
from hasten.serve.tensors import InferRequest, datatype_of, decode_request
from hasten.serve.waiting import Call, TooLate, Waiting

# Named once: an annotation inside a function is evaluated at every request.
_Told = dict[str, np.ndarray] | None
_Outputs = tuple[np.ndarray, ...] | None
_Error = BaseException | None

# Part of the bound that goes by before a request is seen and after it is answered: sockets, the event loop's turn.
_ON_THE_WAY = 0.07


class Overloaded(HastenError):
    """The answer would come too late; `retry_after_s` says when it is worth asking again."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = max(1, math.ceil(retry_after_s))


class TooSlow(HastenError):
    """The answer did not come in time."""


@dataclass(frozen=True)
class Entry:
    """What to serve under a name.

    Attributes:
        name, version: As clients ask for it.
        paths: Artifacts of the same inputs that serve it together.
    """

    name: str
    version: str
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class ServeLimits:
    """What a server keeps to.

    Attributes:
        bound_s: A request is refused when its predicted latency exceeds this; None: only `queue_rows` counts.
        timeout_s: A request without an answer after this long fails.
        queue_rows: Most rows that may wait per model.
        body_bytes: Largest request body.
        receive_s: Longest time for receiving a body.
    """

    bound_s: float | None = None
    timeout_s: float = 60.0
    queue_rows: int = 10_000
    body_bytes: int = 64 * 2**20
    receive_s: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise InvalidInput(f"`{name}` must be above 0, but got {value:g}.")


@dataclass
class Counters:
    """What happened to the requests of one model."""

    success: int = 0
    success_s: float = 0.0
    failed: int = 0
    rejected: int = 0
    rows: int = 0
    last_unix_ms: int = 0


class Refusals:
    """Within it, input of a model that is refused counts as any other failure, so that whoever watches sees it.

    Entered at every request: a generator of `contextlib` would take a microsecond each time.
    """

    def __init__(self, model: "Model") -> None:
        self._model = model

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, InvalidInput):
            self._model.counters.failed += 1


@dataclass(eq=False)
class Model:
    """One version of a model with its engine."""

    entry: Entry
    engine: Engine
    limits: ServeLimits
    counters: Counters = field(default_factory=Counters)
    _waiting: Waiting | None = None

    def __post_init__(self) -> None:
        self.refusals = Refusals(self)
        self._output_names = [f"output_{i}" for i in range(len(self.engine.outputs))]
        # A single input of a known shape, as most models have, is checked by one comparison.
        shapes = [x["shape"][1:] for x in self.engine.inputs]
        self._only: tuple[str, np.dtype, tuple[int, ...]] | None = None
        if len(shapes) == 1 and None not in shapes[0]:
            first = self.engine.inputs[0]
            self._only = first["name"], np.dtype(first["dtype"]), tuple(shapes[0])

    async def infer(self, named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer one request.

        Raises:
            InvalidInput: The inputs do not fit.
            Overloaded: The answer would come after the bound, or too much is waiting.
            TooSlow: No answer within the time limit.
        """
        future: asyncio.Future[dict[str, np.ndarray]] = asyncio.get_running_loop().create_future()

        def tell(outputs: _Told, error: _Error) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            elif outputs is not None:
                future.set_result(outputs)

        call = self.start(named, tell)
        try:
            return await future
        except asyncio.CancelledError:
            self.drop(call)  # the client went away
            raise

    def start(
        self,
        named: Mapping[str, np.ndarray],
        tell: Callable[[_Told, _Error], None],
    ) -> Call:
        """Take one request; `tell(outputs, error)` is called once, later, in this event loop, unless it is dropped.

        Raises:
            InvalidInput: The inputs do not fit.
            Overloaded: The answer would come after the bound, or too much is waiting.
        """
        with self.refusals:
            inputs = self._ordered(named)
        rows = len(inputs[0])
        self._admit(rows)
        waiting, start = self._here(), time.perf_counter()

        def settle(outputs: _Outputs, error: _Error) -> None:
            if outputs is None:
                self.counters.failed += 1
                late = isinstance(error, TooLate)
                tell(None, TooSlow(f"No answer in {self.limits.timeout_s:g} s.") if late else error)
                return
            counters, now = self.counters, time.perf_counter()
            counters.success += 1
            counters.rows += rows
            counters.success_s += now - start
            counters.last_unix_ms = int(time.time() * 1e3)
            tell(dict(zip(self._output_names, outputs, strict=True)), None)

        call = waiting.open(settle)
        try:
            call.work = self.engine.start(inputs, partial(waiting.answered, call))
        except BaseException:
            waiting.drop(call)
            self.counters.failed += 1
            raise
        return call

    def decode(self, body: bytes, json_size: int | None, regions: Regions) -> InferRequest:
        """What a body asks of this model; see `decode_request`."""
        with self.refusals:
            return decode_request(body, json_size, regions)

    def drop(self, call: Call) -> None:
        """Nobody waits for this request any more."""
        if self._here().drop(call):
            self.counters.failed += 1

    def _here(self) -> Waiting:
        """Where requests of this event loop wait."""
        if self._waiting is None:
            self._waiting = Waiting(asyncio.get_running_loop(), self.limits.timeout_s)
        return self._waiting

    def _ordered(self, named: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if self._only is not None and len(named) == 1:
            name, dtype, row = self._only
            x = named.get(name)
            if x is not None and x.dtype == dtype and x.ndim and x.shape[1:] == row and len(x):
                return [x]
        specs = self.engine.inputs
        for name in named:
            if all(name != spec["name"] for spec in specs):
                raise unknown("input", name, [spec["name"] for spec in specs])
        for spec in specs:
            if spec["name"] not in named:
                raise InvalidInput(
                    f"The request must have the input {spec['name']!r}, but has {', '.join(named) or 'none'}."
                )
        return checked_inputs([named[spec["name"]] for spec in specs], specs)

    def _admit(self, rows: int) -> None:
        waiting = self.engine.waiting_rows
        if waiting and waiting + rows > self.limits.queue_rows:
            self.counters.rejected += 1
            raise Overloaded(f"At most {self.limits.queue_rows} rows may wait, and {waiting} do.", 1)
        if self.limits.bound_s is None:
            return
        if not self.engine.admits(rows, (1 - _ON_THE_WAY) * self.limits.bound_s):
            self.counters.rejected += 1
            latency = self.engine.predicted_latency_s(rows)
            raise Overloaded(
                f"The answer must come within {self.limits.bound_s * 1e3:g} ms, but would take {latency * 1e3:.0f} ms. "
                "Ask again later.",
                min(60.0, latency - self.limits.bound_s),
            )

    def metadata(self, versions: Sequence[str]) -> dict[str, Any]:
        """As `GET v2/models/NAME` answers; -1 is any size."""
        return {
            "name": self.entry.name,
            "versions": list(versions),
            "platform": "hasten",
            "inputs": [
                {"name": x["name"], "datatype": datatype_of(x["dtype"]), "shape": _sizes(x["shape"])}
                for x in self.engine.inputs
            ],
            "outputs": [
                {"name": name, "datatype": datatype_of(y["dtype"]), "shape": _sizes(y["shape"])}
                for name, y in zip(self._output_names, self.engine.outputs, strict=True)
            ],
        }

    def config(self) -> dict[str, Any]:
        """As `GET v2/models/NAME/config` answers; the batch is not among `dims`."""
        about = self.metadata([])
        tensors = {
            kind: [
                {"name": x["name"], "data_type": f"TYPE_{x['datatype']}", "dims": x["shape"][1:]}
                for x in about[f"{kind}s"]
            ]
            for kind in ("input", "output")
        }
        largest = max(device["largest_batch"] for device in self.engine.statistics()["devices"])
        return {
            "name": self.entry.name,
            "platform": "hasten",
            "backend": "hasten",
            "max_batch_size": max(largest, self.limits.queue_rows),
            **tensors,
            "dynamic_batching": {"preferred_batch_size": [largest]},
        }

    def triton_statistics(self) -> dict[str, Any]:
        """As `GET v2/models/NAME/stats` answers; times in ns."""
        found, c = self.engine.statistics(), self.counters
        busy_ns = int(sum(device["busy_s"] for device in found["devices"]) * 1e9)
        total_ns = int(c.success_s * 1e9)
        executions = sum(device["batches"] for device in found["devices"])

        def duration(count: int, ns: int) -> dict[str, int]:
            return {"count": count, "ns": ns}

        return {
            "name": self.entry.name,
            "version": self.entry.version,
            "last_inference": c.last_unix_ms,
            "inference_count": c.rows,
            "execution_count": executions,
            "inference_stats": {
                "success": duration(c.success, total_ns),
                "fail": duration(c.failed + c.rejected, 0),
                "queue": duration(c.success, max(0, total_ns - busy_ns)),
                "compute_input": duration(executions, 0),
                "compute_infer": duration(executions, busy_ns),
                "compute_output": duration(executions, 0),
            },
            "batch_stats": [],
        }


def _sizes(shape: Sequence[int | None]) -> list[int]:
    return [-1 if x is None else x for x in shape]
