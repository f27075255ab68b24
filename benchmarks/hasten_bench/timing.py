"""The one timer: every program in its own process of the harness' environment, in turns with eager PyTorch.

Programs are timed in groups that fit into memory, the baseline in each; then the fastest ones once more, all in one
group with hasten's fastest, so that the ratio between hasten and a peer is taken directly and not through a third.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hasten.errors import HastenError
from hasten.measure.arrays import ArrayFile
from hasten.measure.latency import best_throughput, compare
from hasten.measure.worker import Worker
from hasten.recipe import make_target
from hasten_bench.tool import Answer

GROUP = 4
_BATCH = 16


@dataclass
class Measured:
    """What was measured of one program; `failure` says why it was not."""

    latency: dict[str, Any] = field(default_factory=dict)
    throughput: dict[str, Any] = field(default_factory=dict)
    size_bytes: int = 0
    peak_bytes: int = 0
    outputs: np.ndarray | None = None
    failure: str = ""


def measure(
    answers: Sequence[Answer], baseline: Answer, inputs: list[ArrayFile], scratch: Path, *, turns: int, largest: int
) -> dict[str, Measured]:
    """Latency at batch 1, throughput, size, memory and outputs of every answer that has a program.

    Args:
        answers: Those with a program; the baseline may be among them.
        baseline: What ratios are taken against.
        inputs: Real rows, one file per input.
        scratch: Folder for outputs and logs.
        turns: Rounds of the timer.
        largest: Largest batch of the throughput sweep; 1: none.
    """
    others = [a for a in answers if a.name != baseline.name]
    found: dict[str, Measured] = {}
    for start in range(0, max(1, len(others)), GROUP):
        group = [baseline, *others[start : start + GROUP]]
        with contextlib.ExitStack() as stack:
            workers = _start(group, inputs, scratch, found, stack)
            _group(workers, {a.name: a for a in group}, baseline.name, inputs, found, turns, largest, scratch)
    return found


def head_to_head(
    answers: Sequence[Answer], reference: Answer, inputs: list[ArrayFile], scratch: Path, turns: int
) -> dict[str, dict[str, Any]]:
    """Latency of the answers in one group; ratios are against `reference`: above 1 is faster than it."""
    with contextlib.ExitStack() as stack:
        ordered = [reference, *(a for a in answers if a.name != reference.name)]
        workers = {a.name: stack.enter_context(start_worker(a, scratch)) for a in ordered}
        return {k: v.to_json() for k, v in compare(workers, reference.name, inputs, batch=1, turns=turns).items()}


def start_worker(answer: Answer, scratch: Path) -> Worker:
    """The process that runs an answer's program."""
    scratch.mkdir(parents=True, exist_ok=True)
    target = make_target(answer.program["target"], answer.program.get("options", {}))
    folder = answer.folder / answer.program.get("folder", ".")
    return Worker(target, folder.resolve(), scratch / f"{answer.peer}-{answer.variant}.log")


def program_bytes(answer: Answer) -> int:
    """Size of what ships."""
    folder = answer.folder / answer.program.get("folder", ".")
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def _start(
    group: list[Answer], inputs: list[ArrayFile], scratch: Path, found: dict[str, Measured], stack: contextlib.ExitStack
) -> dict[str, Worker]:
    """Workers of those that load and answer one call; the others' failures are recorded."""
    workers = {}
    for answer in group:
        with _recorded(answer.name, found):
            worker = start_worker(answer, scratch)
            stack.callback(worker.close)
            worker.time_calls(inputs, 1, 0.0, least=1)
            workers[answer.name] = worker
    return workers


def _group(
    workers: dict[str, Worker], answers: dict[str, Answer], baseline: str, inputs: list[ArrayFile],
    found: dict[str, Measured], turns: int, largest: int, scratch: Path,
) -> None:  # fmt: skip
    latencies = compare(workers, baseline, inputs, batch=1, turns=turns)
    flexible = {name: w for name, w in workers.items() if "batch" not in answers[name].program}
    rates = best_throughput(flexible, baseline, inputs, largest=largest) if largest > 1 else {}
    for name, worker in workers.items():
        if name in found and not found[name].failure:
            continue  # the baseline, measured with an earlier group
        with _recorded(name, found):
            outputs = _outputs(worker, inputs, scratch / name.replace("/", "-"), answers[name].program.get("batch"))
            found[name] = Measured(
                latencies[name].to_json(),
                rates[name].to_json() if name in rates else {},
                program_bytes(answers[name]),
                worker.peak_memory_bytes(),
                outputs,
            )


def _outputs(worker: Worker, inputs: list[ArrayFile], folder: Path, batch: int | None) -> np.ndarray:
    rows = np.arange(inputs[0].shape[0])
    array = np.array(worker.infer(inputs, rows, folder, batch or _BATCH)[0].open())
    if not np.isfinite(array).all():
        raise HastenError("its outputs are not finite")
    return array


@contextlib.contextmanager
def _recorded(name: str, found: dict[str, Measured]) -> Iterator[None]:
    try:
        yield
    except HastenError as error:
        found[name] = Measured(failure=str(error))
