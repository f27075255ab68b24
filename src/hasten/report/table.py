"""The table at the end of a run: the original and every candidate, with latency ratio, score and bound."""

from typing import Any

from rich.table import Table


def result_table(result: dict[str, Any]) -> Table:
    """The content of `result.json` as a table, fastest first; failures last, with their reason."""
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
        f"{latency['median_ms']:.2f}",
        f"{latency['ratio']:.2f} [{latency['ratio_low']:.2f}, {latency['ratio_high']:.2f}]",
        f"{trial['score']:.4f}",
        f"{trial['drop']:+.4f}",
        bound,
        f"{trial['size_bytes'] / 1e6:.1f}",
        verdict,
    ]


def latency_of(trial: dict[str, Any], finals: dict[int, Any]) -> dict[str, float]:
    """The final timing where there is one, else the trial's own; a failure sorts last."""
    final = finals.get(trial["number"])
    found: dict[str, float] = final["latency"] if final else trial["latency"] or {"ratio": 0.0}
    return found
