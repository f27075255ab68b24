"""A diagnosis on the terminal: the limit and the advice first, then where the time goes, then what it rests on."""

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

_ROWS = 15
# A column of another program's times needs this much beside the layers' own columns.
_OWN_COLUMNS, _OTHER_COLUMN = 80, 12


def diagnosis_tables(found: dict[str, Any], rows: int = _ROWS, width: int = 80) -> Group:
    """The JSON of a diagnosis as text and tables, what matters most first.

    Args:
        found: What `Diagnosis.to_json` wrote.
        rows: How many layers of the quickest program to show; 0: all.
        width: Columns of the terminal; the other programs' times of each layer are shown where there is room for them.
    """
    best = _quickest(found)
    quickest = next((v for v in found["versions"] if v["name"] == best), found["versions"][0])
    return Group(
        _headline(found),
        _advice(found),
        _layers(quickest, found["versions"], rows, width),
        _programs(found),
        _machine(found["machine"], found["above_the_probes"]),
    )


def _quickest(found: dict[str, Any]) -> str:
    """The quickest program that has the subject's own layers."""
    whole: set[str] = {v["name"] for v in found["versions"] if not _half(v)} & set(found["latency"]) or {found["now"]}
    return max(whole, key=lambda name: float(found["latency"][name]["ratio"]))


def _half(version: dict[str, Any]) -> bool:
    """Whether its layers are others than the subject's."""
    return "prune_" in version["recipe"]


def _table(title: str, *headers: str, left: tuple[str, ...] = ()) -> Table:
    """A plain table: what is not in `left` is a number."""
    table = Table(
        title=f"\n{title}", title_justify="left", title_style="bold", header_style="dim", box=None, padding=(0, 2, 0, 0)
    )
    for header in headers:
        table.add_column(header, justify="left" if header in left else "right", overflow="fold")
    return table


def _interval(x: dict[str, Any]) -> str:
    return f"[{x['low']:.2f}, {x['high']:.2f}]"


def _headline(found: dict[str, Any]) -> Group:
    """What it takes now, in the quickest program that was tried, and at least on this machine."""
    device, latency, best = found["machine"]["device"], found["latency"], _quickest(found)
    floors = ", ".join(f"{precision} {ms:.3f} ms" for precision, ms in found["ceilings_ms"].items())
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_row("now", f"{latency[found['now']]['median_ms']:.3f} ms", found["now"])
    if best != found["now"]:
        ratio = f"{latency[best]['ratio']:.2f}x faster"
        table.add_row("quickest", f"{latency[best]['median_ms']:.3f} ms", f"{best}: {ratio}")
    table.add_row("at least", "", f"{floors}: every layer at its floor")
    about = f"{found['subject']} at batch {found['inputs'][0][0]}, {device['cpu']}, {device['cores']} cores"
    return Group(Text(about, "bold"), table)


def _advice(found: dict[str, Any]) -> Group:
    if not found["advice"]:
        return Group(Text("\nNo change that was tried brings 5% or more."))
    table = _table(f"What would bring most, over {found['now']}", "x faster", "[95%]", "change", left=("change",))
    for advice in found["advice"]:
        table.add_row(f"{advice['predicted_gain']:.2f}", _interval(advice), advice["words"])
    note = "Dry runs, of speed only: `hasten run` judges accuracy. Their recipes: --json."
    return Group(table, Text(note, style="dim"))


def _layers(quickest: dict[str, Any], versions: list[dict[str, Any]], rows: int, width: int) -> Group:
    room = max(0, (width - _OWN_COLUMNS) // _OTHER_COLUMN)
    others = [v for v in versions if v is not quickest and not _half(v)][:room]
    times = [_by_layer(v) for v in others]
    headers = ("layer", "us", "share", "of limit", "reason", *(v["name"] for v in others))
    table = _table(f"Slowest layers of {quickest['name']}", *headers, left=("layer", "reason"))
    shown = sorted(quickest["rows"], key=lambda row: -row["time_us"])[: rows or None]
    for row in shown:
        reached = f"{row['achieved']:.0%}" if row["achieved"] is not None else ""
        cells = [_sum(known, row["layers"]) for known in times]
        table.add_row(row["label"], f"{row['time_us']:.1f}", f"{row['share']:.1%}", reached, row["reason"], *cells)
    return Group(table, Text(_by_reason(quickest), style="dim"))


def _by_reason(version: dict[str, Any]) -> str:
    """The shares of the whole by reason, the largest first."""
    shares: dict[str, float] = {}
    for row in version["rows"]:
        word = row["reason"].split(",")[0]
        shares[word] = shares.get(word, 0.0) + row["share"]
    ordered = sorted(shares.items(), key=lambda pair: -pair[1])
    return "All layers: " + ", ".join(f"{word} {share:.0%}" for word, share in ordered if share >= 0.005) + "."


def _by_layer(version: dict[str, Any]) -> dict[str, float]:
    """Microseconds by layer label; nodes that compute several layers count for their first."""
    return {row["layers"][0]: row["time_us"] for row in version["rows"] if row["layers"]}


def _sum(times: dict[str, float], layers: list[str]) -> str:
    known = [times[label] for label in layers if label in times]
    return f"{sum(known):.1f}" if known else ""


def _programs(found: dict[str, Any]) -> Group:
    table = _table(
        "Programs, timed in turns; the sum of their layers over the whole",
        "program",
        "ms",
        "x faster",
        "[95%]",
        "sum",
        left=("program",),
    )
    coverage = {v["name"]: f"{v['sum_over_whole']:.2f}" for v in found["versions"]}
    for name, latency in sorted(found["latency"].items(), key=lambda pair: pair[1]["median_ms"]):
        interval = f"[{latency['ratio_low']:.2f}, {latency['ratio_high']:.2f}]"
        ratio = f"{latency['ratio']:.2f}"
        table.add_row(name, f"{latency['median_ms']:.3f}", ratio, interval, coverage.get(name, ""))
    lines = [f"not measured: {name}: {why}" for name, why in found["failed"].items()]
    return Group(table, *([Text("\n".join(lines), style="dim")] if lines else []))


def _machine(limits: dict[str, Any], above: list[str]) -> Group:
    table = _table("What this machine can do", "limit", "value", "by", left=("limit", "by"))
    for precision, peak in limits["peaks"].items():
        table.add_row(f"{precision} arithmetic", f"{peak['ops_per_s'] / 1e9:.0f} Gop/s", peak["by"])
    for name, key in (("last-level cache", "cache_bytes_per_s"), ("memory", "dram_bytes_per_s")):
        table.add_row(name, f"{limits[key] / 1e9:.0f} GB/s", "")
    for target, call_us in limits["call_us"].items():
        table.add_row(f"a call in {target}", f"{call_us:.1f} us", f"{limits['node_us'][target]:.2f} us per operator")
    sets = ", ".join(limits["device"]["instruction_sets"]) or "none of those that matter"
    notes = [f"instruction sets: {sets}", *(f"raised: {line}" for line in above)]
    return Group(table, Text("\n".join(notes), style="dim"))
