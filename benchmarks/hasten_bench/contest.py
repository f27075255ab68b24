"""One workload, every peer, in two steps: ask the tools and keep what they made; time what is kept.

Every variant keeps a row, whatever became of it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hasten_bench import kept, results
from hasten_bench.handover import Handover, hand_over
from hasten_bench.judge import Quality, judge
from hasten_bench.material import Skipped, cache
from hasten_bench.outputs import keep_outputs, read_outputs
from hasten_bench.registry import Peer
from hasten_bench.settings import Settings
from hasten_bench.timing import Measured, head_to_head, measure
from hasten_bench.tool import Answer
from hasten_bench.workloads import Workload

BASELINE = "eager/fp32"
FINALISTS = 4

Entrants = Sequence[tuple[Peer, str]]


def ask_tools(
    workload: Workload, entrants: Entrants, settings: Settings, say: Callable[[str], None], fresh: bool = False
) -> None:
    """Run every tool whose kept program is missing or made from other things, and keep the outputs.

    Args:
        workload: The work.
        entrants: Peers and variants.
        settings: How much to spend.
        say: Receives one line per event.
        fresh: Run all of them again.
    """
    say(f"{workload.name}: preparing")
    try:
        handover = hand_over(workload)
    except Skipped as error:
        say(f"{workload.name}: skipped: {error}")
        return
    end = time.monotonic() + settings.network_s
    for peer, variant in entrants:
        left = end - time.monotonic()
        if left <= 0:
            say(f"  {peer.name}/{variant}: not asked: the {settings.network_s:.0f} s were used up")
            continue
        answer = kept.answer(peer, variant, handover, settings, min(settings.limit_s, left), fresh)
        answer = keep_outputs(answer, handover, kept.home(workload.name, peer, variant, settings))
        say(f"  {answer.name}: {answer.failure or f'{answer.tool_s:.0f} s'} ({answer.made.get('started', '')})")


def time_kept(workload: Workload, entrants: Entrants, settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """The document of one workload: a row for each entrant and the head-to-head of the fastest.

    Args:
        workload: The work.
        entrants: Peers and variants; `eager/fp32` must be among them.
        settings: Turns of the timer, rows to judge by.
        say: Receives one line per event.
    """
    begun: dict[str, Any] = {"net": workload.name, "title": workload.title, "trained": workload.trained}
    begun["max_drop"] = workload.max_drop if workload.trained else None
    try:
        handover = hand_over(workload)
    except Skipped as error:
        say(f"{workload.name}: skipped: {error}")
        return begun | {"skipped": str(error), "rows": []}
    answers = [_kept(peer, variant, handover, settings) for peer, variant in entrants]
    baseline = next((a for a in answers if a.name == BASELINE), None)
    if baseline is None or baseline.failure:
        reason = "it was not asked" if baseline is None else baseline.failure
        return begun | {"skipped": f"no baseline: {reason}", "rows": [_row(a, Measured(), None) for a in answers]}
    before = results.load_average()
    found = _contest(workload, handover, answers, baseline, settings, say)
    loads = {"load_average_before": before, "load_average_after": results.load_average()}
    return begun | {"about": handover.about} | found | loads


def _kept(peer: Peer, variant: str, handover: Handover, settings: Settings) -> Answer:
    """The kept answer, with its failure where it was made from another network or other data."""
    folder = kept.home(handover.workload.name, peer, variant, settings)
    answer = kept.read(folder)
    if answer is None:
        return Answer(peer.name, variant, folder, failure="not asked in this run")
    if answer.made.get("work") != handover.key and not answer.failure:
        return replace(answer, failure="made from an earlier state of this work; not asked again since")
    return answer


def _contest(
    workload: Workload, handover: Handover, answers: list[Answer], baseline: Answer, settings: Settings,
    say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    with_program = [a for a in answers if not a.failure]
    say(f"{workload.name}: timing {len(with_program)} programs")
    scratch = cache() / "jobs" / workload.name / "timing"
    found = measure(
        with_program, baseline, handover.inputs, scratch, turns=settings.turns, largest=settings.largest_batch
    )
    original = read_outputs(baseline.folder.parent, settings.test_rows)
    rows, accurate = [], []
    for answer in answers:
        measured, quality = found.get(answer.name, Measured()), None
        outputs = read_outputs(answer.folder.parent, settings.test_rows)
        if not answer.failure and not measured.failure and outputs is None:
            measured = replace(measured, failure="it gave no outputs for the test rows yet")
        if not answer.failure and not measured.failure and outputs is not None and original is not None:
            quality, measured = _judged(workload, outputs, original, measured, handover, settings)
        rows.append(_row(answer, measured, quality))
        if quality is not None and quality.keeps:
            accurate.append((measured.latency["ratio"], answer))
    return {"rows": rows, "finals": _finals(accurate, handover, settings) if accurate else {}}


def _judged(
    workload: Workload, outputs: np.ndarray, original: np.ndarray, measured: Measured, handover: Handover,
    settings: Settings,
) -> tuple[Quality | None, Measured]:  # fmt: skip
    if outputs.shape != original.shape:
        return None, replace(measured, failure=f"its outputs have shape {outputs.shape}, not {original.shape}")
    target = handover.test_target
    if target is not None:
        # Of sentence pairs there are half as many targets as rows.
        target = target[: len(outputs) * len(target) // handover.inputs[0].shape[0]]
    return judge(workload, outputs, original, target), measured


def _finals(accurate: list[tuple[float, Answer]], handover: Handover, settings: Settings) -> dict[str, Any]:
    """The fastest accurate programs of all peers, one of each, against hasten's fastest."""
    best_of: dict[str, Answer] = {}
    for _, answer in sorted(accurate, key=lambda x: -x[0]):
        best_of.setdefault(answer.peer, answer)
    ours = best_of.pop("hasten", None)
    if ours is None or not best_of:
        return {}
    eager = best_of.pop("eager", None)
    chosen = [*list(best_of.values())[:FINALISTS], *([eager] if eager is not None else [])]
    scratch = cache() / "jobs" / handover.workload.name / "timing"
    return {"hasten": ours.name, "latency": head_to_head(chosen, ours, handover.inputs, scratch, 2 * settings.turns)}


def _row(answer: Answer, measured: Measured, quality: Quality | None) -> dict[str, Any]:
    return {
        "peer": answer.peer,
        "variant": answer.variant,
        "failure": answer.failure or measured.failure,
        "tool": {
            "seconds": answer.tool_s,
            "cpu_seconds": answer.tool_cpu_s,
            "peak_bytes": answer.tool_peak_bytes,
            "lines": answer.lines,
        },
        "made": answer.made,
        "program": answer.program,
        "packages": answer.packages,
        "latency": measured.latency,
        "throughput": measured.throughput,
        "size_bytes": measured.size_bytes,
        "peak_bytes": measured.peak_bytes,
        "quality": quality.to_json() if quality else None,
    }
