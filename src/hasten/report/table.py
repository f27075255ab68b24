"""The text at the end of a run: the original and every candidate, with latency ratio, score and bound.

A candidate's name, which may be long, has a line of its own above its numbers, so that both fit any terminal.
"""

from collections.abc import Iterable
from typing import Any

from rich.text import Text

from hasten.judged import number

_LEGEND = "Score and drop on the search part; at most: the certified bound of the drop, on the other part."
_TIMED = "  {:<21}{:>8}{:>8}{:>9}{:>9}{:>7}  {}"
_JUDGED = "  {:>8}{:>9}{:>9}  {:<14}{:<11}{}"


def result_table(result: dict[str, Any]) -> Text:
    """The content of `result.json`, best first; failures last, with their reason."""
    finals = {final["number"]: final for final in result["finals"]}
    limits = result["budget"].get("limits")
    if limits:
        wanted = ", ".join(f"{name} {number(value)}" for name, value in limits.items())
        title = f"Judged, not timed, under {wanted}; the most room first."
        header = _JUDGED.format("score", "drop", "at most", "verdict", "evidence", "judged")
        shown = sorted((t for t in result["trials"] if t["judged"]), key=lambda t: -(t["gain"] or 0.0))
        rows = [(trial, _judged(trial, finals, limits)) for trial in shown]
    else:
        title = "Batch 1, against the original in PyTorch eager; fastest first."
        header = _TIMED.format("x faster [95%]", "ms", "score", "drop", "at most", "MB", "verdict")
        measured = [t for t in result["trials"] if t["latency"]]
        shown = sorted(measured, key=lambda t: -latency_of(t, finals)["ratio"])
        rows = [(trial, _timed(trial, finals)) for trial in shown]
    text = Text(f"{result['task']}\n{title}\n\n")
    text.append(f"{header}\n", style="bold")
    for trial, numbers in rows:
        style = "bold green" if trial["number"] == result.get("best_number") else ""
        text.append(f"{_name(trial)}\n{numbers}\n", style=style)
    text.append_text(_failures(result["trials"]))
    return text.append(f"\n{_LEGEND}")


def latency_of(trial: dict[str, Any], finals: dict[int, Any]) -> dict[str, float]:
    """The final timing where there is one, else the trial's own; a failure sorts last."""
    final = finals.get(trial["number"])
    found: dict[str, float] = (final["latency"] if final else trial["latency"]) or {"ratio": 0.0}
    return found


def _name(trial: dict[str, Any]) -> str:
    return "original (eager)" if trial["number"] == 0 else str(trial["name"])


def _timed(trial: dict[str, Any], finals: dict[int, Any]) -> str:
    latency = latency_of(trial, finals)
    ratio = f"{latency['ratio']:.2f} [{latency['ratio_low']:.2f}, {latency['ratio_high']:.2f}]"
    score, drop, bound, verdict = _accuracy(trial, finals)
    size = f"{trial['size_bytes'] / 1e6:.1f}"
    return _TIMED.format(ratio, f"{latency['median_ms']:.2f}", score, drop, bound, size, verdict).rstrip()


def _judged(trial: dict[str, Any], finals: dict[int, Any], limits: dict[str, float]) -> str:
    values = ", ".join(f"{name} {number(value)}" for name, value in trial["judged"].items() if name in limits)
    score, drop, bound, verdict = _accuracy(trial, finals)
    return _JUDGED.format(score, drop, bound, verdict, trial["evidence"], values)


def _accuracy(trial: dict[str, Any], finals: dict[int, Any]) -> tuple[str, str, str, str]:
    """Score, drop, certified bound and verdict."""
    bound = verdict = ""
    if final := finals.get(trial["number"]):
        bound = f"{final['certificate']['upper_bound']:.4f}"
        verdict = "passed" if final["certificate"]["passed"] else "not certified"
    return f"{trial['score']:.4f}", f"{trial['drop']:+.4f}", bound, verdict


def _failures(trials: Iterable[dict[str, Any]]) -> Text:
    failed = [trial for trial in trials if trial["failure"]]
    text = Text("\nFailed:\n" if failed else "")
    for trial in failed:
        text.append(f"{_name(trial)}\n  {trial['failure']}\n", style="dim")
    return text
