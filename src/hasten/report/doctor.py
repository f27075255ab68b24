"""A diagnosis as tables on the terminal."""

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

_ROWS = 15


def diagnosis_tables(found: dict[str, Any], rows: int = _ROWS) -> Group:
    """The JSON of a diagnosis as tables: the machine, the programs, the slowest layers, the advice.

    Args:
        found: What `Diagnosis.to_json` wrote.
        rows: How many layers of the quickest program to show; 0: all.
    """
    quickest = min(found["versions"], key=lambda v: v["whole_us"])
    return Group(
        _machine(found["machine"], found["above_the_probes"]),
        _programs(found),
        _layers(quickest, found["versions"], rows),
        _advice(found),
    )


def _machine(limits: dict[str, Any], above: list[str]) -> Group:
    table = Table(title=f"{limits['device']['cpu']}, {limits['device']['cores']} cores")
    for header in ("limit", "value", "reached by"):
        table.add_column(header, justify="right" if header == "value" else "left")
    for precision, peak in limits["peaks"].items():
        table.add_row(f"{precision} arithmetic", f"{peak['ops_per_s'] / 1e9:.0f} Gop/s", peak["by"])
    for name, key in (("last-level cache", "cache_bytes_per_s"), ("memory", "dram_bytes_per_s")):
        table.add_row(name, f"{limits[key] / 1e9:.0f} GB/s", "")
    for target, call_us in limits["call_us"].items():
        table.add_row(
            f"a call in {target}", f"{call_us:.1f} us", f"{limits['node_us'][target]:.2f} us for each operator"
        )
    sets = ", ".join(limits["device"]["instruction_sets"]) or "none of those that matter"
    notes = [f"instruction sets: {sets}", *(f"raised: {line}" for line in above)]
    return Group(table, Text("\n".join(notes), style="dim"))


def _programs(found: dict[str, Any]) -> Group:
    table = Table(title=f"{found['subject']}: programs, timed in turns at batch {found['inputs'][0][0]}")
    for header in ("program", "ms", "x faster [95%]", "sum of layers / whole"):
        table.add_column(header, justify="left" if header == "program" else "right")
    coverage = {v["name"]: f"{v['sum_over_whole']:.2f}" for v in found["versions"]}
    for name, latency in found["latency"].items():
        ratio = f"{latency['ratio']:.2f} [{latency['ratio_low']:.2f}, {latency['ratio_high']:.2f}]"
        table.add_row(name, f"{latency['median_ms']:.3f}", ratio, coverage.get(name, ""))
    floors = ", ".join(f"{precision} {ms:.3f} ms" for precision, ms in found["ceilings_ms"].items())
    lines = [f"least time of this architecture here: {floors}"]
    lines += [f"not measured: {name}: {why}" for name, why in found["failed"].items()]
    return Group(table, Text("\n".join(lines), style="dim"))


def _layers(quickest: dict[str, Any], versions: list[dict[str, Any]], rows: int) -> Table:
    others = [v for v in versions if v is not quickest]
    times = {v["name"]: _by_layer(v) for v in others}
    table = Table(title=f"slowest layers of {quickest['name']}; us per layer in the other programs")
    table.add_column("layer", overflow="fold")
    for header in ("us", "share", "of the limit"):
        table.add_column(header, justify="right")
    table.add_column("reason")
    for v in others:
        table.add_column(v["name"], justify="right")
    shown = sorted(quickest["rows"], key=lambda row: -row["time_us"])
    for row in shown[: rows or None]:
        reached = f"{row['achieved']:.0%}" if row["achieved"] is not None else ""
        cells = [_sum(times[v["name"]], row["layers"]) for v in others]
        table.add_row(row["label"], f"{row['time_us']:.1f}", f"{row['share']:.1%}", reached, row["reason"], *cells)
    return table


def _by_layer(version: dict[str, Any]) -> dict[str, float]:
    """Microseconds by layer label; nodes that compute several layers count for their first."""
    return {row["layers"][0]: row["time_us"] for row in version["rows"] if row["layers"]}


def _sum(times: dict[str, float], layers: list[str]) -> str:
    known = [times[label] for label in layers if label in times]
    return f"{sum(known):.1f}" if known else ""


def _advice(found: dict[str, Any]) -> Group:
    table = Table(title="what would bring most (speed only: `hasten run` judges accuracy)")
    for header in ("change", "predicted x faster than " + found["now"], "[95%]"):
        table.add_column(header, justify="left" if header == "change" else "right")
    for advice in found["advice"]:
        interval = f"[{advice['low']:.2f}, {advice['high']:.2f}]"
        table.add_row(advice["words"], f"{advice['predicted_gain']:.2f}", interval)
    if not found["advice"]:
        return Group(Text("No change that was tried brings 5% or more."))
    return Group(table, Text("each as a recipe for `hasten apply`: hasten doctor ... --json", style="dim"))
