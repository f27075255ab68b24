"""The table at the end of a run: the original and every candidate, with latency ratio, score and bound."""

from typing import Any

from rich.table import Table


def result_table(result: dict[str, Any]) -> Table:
    """The content of `result.json` as a table, fastest first; failures last, with their reason."""
    if result["budget"].get("limits"):
        return _judged_table(result)
    finals = {final["number"]: final for final in result["finals"]}
    best = result.get("best_number")
    table = Table(
        title=f"{result['task']}: batch-1 latency against the original in PyTorch eager",
        caption="score and drop on the search part; at most: certified bound of the drop, on the other part",
    )
    for header, justify in _COLUMNS:
        table.add_column(header, justify=justify)
    for trial in sorted(result["trials"], key=lambda t: -latency_of(t, finals)["ratio"]):
        table.add_row(*_row(trial, finals), style="bold green" if trial["number"] == best else None)
    return table


_COLUMNS: tuple[tuple[str, Any], ...] = (
    ("candidate", "left"),
    ("ms", "right"),
    ("x faster [95%]", "right"),
    ("score", "right"),
    ("drop", "right"),
    ("at most", "right"),
    ("MB", "right"),
    ("verdict", "left"),
)


def _row(trial: dict[str, Any], finals: dict[int, Any]) -> list[str]:
    name = "original (eager)" if trial["number"] == 0 else trial["name"]
    if trial["failure"]:
        return [name, "", "", "", "", "", "", f"failed: {trial['failure'][:60]}"]
    latency, final = latency_of(trial, finals), finals.get(trial["number"])
    bound = f"{final['certificate']['upper_bound']:.4f}" if final else ""
    verdict = ("passed" if final["certificate"]["passed"] else "not certified") if final else ""
    return [
        name,
        f"{latency['median_ms']:.2f}" if "median_ms" in latency else "",
        f"{latency['ratio']:.2f} [{latency['ratio_low']:.2f}, {latency['ratio_high']:.2f}]" if latency["ratio"] else "",
        f"{trial['score']:.4f}",
        f"{trial['drop']:+.4f}",
        bound,
        f"{trial['size_bytes'] / 1e6:.1f}",
        verdict,
    ]


def _judged_table(result: dict[str, Any]) -> Table:
    """What was judged, not timed: no speed in it, and the most room under the limits first."""
    finals, limits = {final["number"]: final for final in result["finals"]}, result["budget"]["limits"]
    table = Table(
        title=f"{result['task']}: judged, not timed, under {', '.join(f'{k} {v:g}' for k, v in limits.items())}",
        caption="score and drop on the search part; at most: certified bound of the drop, on the other part",
    )
    for header, justify in _JUDGED_COLUMNS:
        table.add_column(header, justify=justify)
    for trial in sorted(result["trials"], key=lambda t: (bool(t["failure"]), -(t["gain"] or 0.0))):
        style = "bold green" if trial["number"] == result.get("best_number") else None
        if trial["failure"]:
            table.add_row(trial["name"], "", "", "", "", "", f"failed: {trial['failure'][:60]}")
        elif trial["judged"]:
            values = ", ".join(f"{k} {v:,.6g}" for k, v in trial["judged"].items() if k in limits)
            *_, score, drop, bound, _, verdict = _row(trial, finals)
            table.add_row(trial["name"], values, trial["evidence"], score, drop, bound, verdict, style=style)
    return table


_JUDGED_COLUMNS: tuple[tuple[str, Any], ...] = (
    ("candidate", "left"),
    ("judged", "left"),
    ("evidence", "left"),
    ("score", "right"),
    ("drop", "right"),
    ("at most", "right"),
    ("verdict", "left"),
)


def latency_of(trial: dict[str, Any], finals: dict[int, Any]) -> dict[str, float]:
    """The final timing where there is one, else the trial's own; a failure sorts last."""
    final = finals.get(trial["number"])
    found: dict[str, float] = (final["latency"] if final else trial["latency"]) or {"ratio": 0.0}
    return found
