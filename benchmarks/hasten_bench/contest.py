"""One workload, every peer: ask, time, judge, and keep a row for each, whatever became of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hasten_bench import tool
from hasten_bench.handover import Handover, hand_over
from hasten_bench.judge import Quality, judge
from hasten_bench.material import Skipped, cache
from hasten_bench.registry import Peer
from hasten_bench.timing import Measured, head_to_head, measure
from hasten_bench.tool import Answer
from hasten_bench.workloads import Workload

BASELINE = "eager/fp32"
FINALISTS = 4


@dataclass(frozen=True)
class Settings:
    """How much to spend.

    Attributes:
        turns: Rounds of the timer.
        test_rows: Rows to judge by, at most.
        largest_batch: Of the throughput sweep.
        minutes: What a tool may spend on searching or training.
        limit_s: When a tool's process is ended.
        network_s: What all tools together may take on one network; who comes later keeps a row that says so.
    """

    turns: int = 15
    test_rows: int = 2000
    largest_batch: int = 64
    minutes: float = 10.0
    limit_s: float = 1800.0
    network_s: float = float("inf")


QUICK = Settings(turns=7, test_rows=600, largest_batch=16, minutes=0.5, limit_s=120.0, network_s=300.0)


def run_workload(
    workload: Workload, entrants: Sequence[tuple[Peer, str]], settings: Settings, say: Callable[[str], None]
) -> dict[str, Any]:
    """The document of one workload: a row for each entrant and the head-to-head of the fastest.

    Args:
        workload: The work.
        entrants: Peers and variants; `eager/fp32` must be among them.
        settings: How much to spend.
        say: Receives one line per event.
    """
    begun: dict[str, Any] = {"net": workload.name, "title": workload.title, "trained": workload.trained}
    begun["max_drop"] = workload.max_drop if workload.trained else None
    say(f"{workload.name}: preparing")
    try:
        handover = hand_over(workload, settings.test_rows)
    except Skipped as error:
        say(f"{workload.name}: skipped: {error}")
        return begun | {"skipped": str(error), "rows": []}
    home = cache() / "jobs" / workload.name
    end = time.monotonic() + settings.network_s
    answers = [_ask(peer, variant, handover, home, settings, end, say) for peer, variant in entrants]
    return begun | {"about": handover.about} | _rows(workload, handover, answers, home, settings, say)


def _ask(
    peer: Peer,
    variant: str,
    handover: Handover,
    home: Path,
    settings: Settings,
    end: float,
    say: Callable[[str], None],
) -> Answer:
    folder = home / f"{peer.name}-{variant}"
    left = end - time.monotonic()
    if left <= 0:
        answer = Answer(peer.name, variant, folder, failure=f"not asked: the {settings.network_s:.0f} s were used up")
    else:
        limit_s = min(settings.limit_s, left)
        answer = tool.ask(peer, variant, handover, folder, minutes=settings.minutes, limit_s=limit_s)
    say(f"  {answer.name}: {answer.failure or f'{answer.tool_s:.0f} s'}")
    return answer


def _rows(
    workload: Workload, handover: Handover, answers: list[Answer], home: Path, settings: Settings,
    say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    with_program = [a for a in answers if not a.failure]
    baseline = next((a for a in with_program if a.name == BASELINE), None)
    if baseline is None:
        reason = next((a.failure for a in answers if a.name == BASELINE), "it was not asked")
        return {"skipped": f"no baseline: {reason}", "rows": [_row(a, Measured(), None) for a in answers]}
    say(f"{workload.name}: timing {len(with_program)} programs")
    found = measure(
        with_program, baseline, handover.inputs, home / "timing", turns=settings.turns, largest=settings.largest_batch
    )
    original = found[BASELINE].outputs
    rows, fastest = [], []
    for answer in answers:
        measured = found.get(answer.name, Measured())
        quality = None
        if measured.outputs is not None and original is not None:
            quality, measured = _judged(workload, measured, found[BASELINE], handover)
        rows.append(_row(answer, measured, quality))
        if quality is not None and quality.keeps:
            fastest.append((measured.latency["ratio"], answer))
    finals = _finals(fastest, handover, home, settings) if fastest else {}
    return {"rows": rows, "finals": finals}


def _judged(
    workload: Workload, measured: Measured, baseline: Measured, handover: Handover
) -> tuple[Quality | None, Measured]:
    assert measured.outputs is not None
    assert baseline.outputs is not None
    if measured.outputs.shape != baseline.outputs.shape:
        wrong = f"its outputs have shape {measured.outputs.shape}, not {baseline.outputs.shape}"
        return None, replace(measured, failure=wrong)
    return judge(workload, measured.outputs, baseline.outputs, handover.test_target), measured


def _finals(fastest: list[tuple[float, Answer]], handover: Handover, home: Path, settings: Settings) -> dict[str, Any]:
    """The fastest accurate programs of all peers, one of each, against hasten's fastest."""
    ordered = [answer for _, answer in sorted(fastest, key=lambda x: -x[0])]
    best_of: dict[str, Answer] = {}
    for answer in ordered:
        best_of.setdefault(answer.peer, answer)
    ours = best_of.pop("hasten", None)
    if ours is None or not best_of:
        return {}
    eager = next((a for a in best_of.values() if a.name == BASELINE), None)
    chosen = [*list(best_of.values())[:FINALISTS]]
    if eager is not None and eager not in chosen:
        chosen.append(eager)
    found = head_to_head(chosen, ours, handover.inputs, home / "timing", 2 * settings.turns)
    return {"hasten": ours.name, "latency": found}


def _row(answer: Answer, measured: Measured, quality: Quality | None) -> dict[str, Any]:
    return {
        "peer": answer.peer,
        "variant": answer.variant,
        "failure": answer.failure or measured.failure,
        "tool": {"seconds": answer.tool_s, "peak_bytes": answer.tool_peak_bytes, "lines": answer.lines},
        "program": answer.program,
        "packages": answer.packages,
        "latency": measured.latency,
        "throughput": measured.throughput,
        "size_bytes": measured.size_bytes,
        "peak_bytes": measured.peak_bytes,
        "quality": quality.to_json() if quality else None,
    }
