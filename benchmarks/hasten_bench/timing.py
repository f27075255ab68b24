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
_SLOWEST_CALL_S = 0.7


@dataclass
class Measured:
    """What was measured of one program; `failure` says why it was not."""

    latency: dict[str, Any] = field(default_factory=dict)
    throughput: dict[str, Any] = field(default_factory=dict)
    size_bytes: int = 0
    peak_bytes: int = 0
    failure: str = ""


def measure(
    answers: Sequence[Answer], baseline: Answer, inputs: list[ArrayFile], scratch: Path, *, turns: int, largest: int
) -> dict[str, Measured]:
    """Latency at batch 1, throughput, size and memory of every answer that has a program.

    Args:
        answers: Those with a program; the baseline may be among them.
        baseline: What ratios are taken against.
        inputs: Real rows, one file per input.
        scratch: Folder for logs.
        turns: Rounds of the timer.
        largest: Largest batch of the throughput sweep; smaller where a call of the baseline would take too long.
    """
    others = [a for a in answers if a.name != baseline.name]
    found: dict[str, Measured] = {}
    groups = [others[start : start + GROUP] for start in range(0, max(1, len(others)), GROUP)]
    while groups:
        group = groups.pop(0)
        try:
            _measure_group([baseline, *group], inputs, scratch, found, turns, largest)
        except HastenError as error:
            # One of them ended while it was timed: each alone, so that only that one loses its row.
            if len(group) > 1:
                groups = [[a] for a in group] + groups
            else:
                found[group[0].name if group else baseline.name] = Measured(failure=str(error))
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


def _measure_group(
    group: list[Answer], inputs: list[ArrayFile], scratch: Path, found: dict[str, Measured], turns: int, largest: int
) -> None:
    """Measure a group whose first is the baseline."""
    baseline = group[0].name
    answers = {a.name: a for a in group}
    with contextlib.ExitStack() as stack:
        workers = _start(group, inputs, scratch, found, stack)
        if baseline not in workers:
            return
        latencies = compare(workers, baseline, inputs, batch=1, turns=turns)
        while largest > 1 and largest * latencies[baseline].median_ms > 1e3 * _SLOWEST_CALL_S:
            largest //= 2
        flexible = {name: w for name, w in workers.items() if takes_batches(w, inputs, scratch)}
        rates = best_throughput(flexible, baseline, inputs, largest=largest) if baseline in flexible else {}
        for name, worker in workers.items():
            if name in found and not found[name].failure:
                continue  # the baseline, measured with an earlier group
            with _recorded(name, found):
                rate = rates[name].to_json() if name in rates else {}
                size = program_bytes(answers[name])
                found[name] = Measured(latencies[name].to_json(), rate, size, worker.peak_memory_bytes())


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


def takes_batches(worker: Worker, inputs: list[ArrayFile], scratch: Path) -> bool:
    """Whether a program answers every row of a larger batch.

    Some tools export a program of one row, and some of those take more rows and answer the first alone.
    """
    try:
        outputs = worker.infer(inputs, np.arange(2), scratch / "two", 2)
    except HastenError:
        return False
    return all(x.shape[:1] == (2,) for x in outputs)


@contextlib.contextmanager
def _recorded(name: str, found: dict[str, Measured]) -> Iterator[None]:
    try:
        yield
    except HastenError as error:
        found[name] = Measured(failure=str(error))
