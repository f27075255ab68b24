"""docs/engine.md from the results; nothing in it is written by hand but the words around the numbers."""

from collections.abc import Callable, Mapping
from typing import Any

_INTRODUCTION = """# The engine and the server, measured

Written by `python benchmarks/engine.py --page > docs/engine.md` from `benchmarks/results/engine.json`; do not edit.

Every number is a median over interleaved repeats [smallest, largest]. "Runtime alone" is the same ONNX Runtime session
called in a loop by as many threads as the server has replicas, in the same run, with nobody asking: all cores are its
own. Beside the server they are shared with the load generator (one thread, plain sockets). The ratio charges the server
for that; the row "of the CPU time that the load generator left" does not. CPU time per request is that of the server's
whole process tree, without the load generator; "beyond the model" takes off what the runtime alone needs per row, in
batches as large as the server's were on average. Networks have random weights; only their time matters: "small" is made
to take about 0.25 ms and "large" about 5 ms per image on one core of a server at its full clock; what they took in this
run stands below, and times in microseconds grow with it.
"""

# Row, path of the number in it, what it is, target (None: none stated), whether larger is better.
_TARGETS: list[tuple[str, tuple[str, ...], str, float | None, bool]] = [
    ("large", ("throughput / runtime alone",), "throughput / runtime alone, large network", 0.97, True),
    ("small", ("throughput / runtime alone",), "the same, small network, 2 replicas", 0.75, True),
    (
        "large",
        ("the same, of the CPU time that the load generator left",),
        "large network, of the CPU time that the load generator left",
        None,
        True,
    ),
    (
        "small",
        ("the same, of the CPU time that the load generator left",),
        "small network, of the CPU time that the load generator left",
        None,
        True,
    ),
    ("large", ("model, ms",), "large network alone, ms per image and core", None, False),
    ("small", ("model, ms",), "small network alone, ms per image and core", None, False),
    ("throughput", ("large", "ratio"), "engine / runtime without a server, large network", 0.97, True),
    ("throughput", ("small", "ratio"), "the same, small network", 0.75, True),
    (
        "small",
        ("server CPU per request beyond the model, us",),
        "server CPU per request beyond the model, us (small network)",
        80,
        False,
    ),
    ("small", ("the same / the model's CPU time",), "the same / the model's CPU time", None, False),
    (
        "large",
        ("server CPU per request beyond the model, us",),
        "the same, large network, 110 KB requests",
        None,
        False,
    ),
    ("large", ("p50 of one client / model time",), "one client's p50 / model time, large network", 1.8, False),
    ("small", ("p50 of one client / model time",), "the same, small network", 1.8, False),
    ("large", ("p99 / p50, 16 clients",), "p99 / p50 saturated, 16 clients, large network", 1.35, False),
    ("small", ("p99 / p50, 16 clients",), "the same, small network", 1.35, False),
    (
        "overload",
        ("answers within the bound / capacity",),
        "answers within 100 ms at 3x load / capacity",
        0.75,
        True,
    ),
    ("overload", ("rejection p99, ms",), "rejection p99, ms", 10, False),
    ("overload", ("accepted p99 / bound",), "accepted p99 / bound", 1.05, False),
    ("small", ("ready, s",), "ready, s", 0.6, False),
    ("small", ("idle CPU share",), "idle CPU share", 0.01, False),
    ("jpeg", ("pipeline / model alone",), "JPEG files to answers / model alone", 0.95, True),
    (
        "jpeg",
        ("pipeline / what model and decoding on these cores allow",),
        "the same / what model and decoding on these cores allow",
        None,
        True,
    ),
    ("raydata", ("Ray Data / local engine, steady rate",), "Ray Data / local engine, steady rate", 0.8, True),
    ("jpeg", ("plain loop / model alone",), "a plain loop over the same files / model alone", None, True),
    (
        "makespan",
        ("real 4:1, 400 rows", "makespan / lower bound"),
        "makespan / (work / summed speed), 50 batches",
        1.05,
        False,
    ),
    ("makespan", ("real 4:1, 48 rows", "makespan / lower bound"), "the same, 6 batches", 1.12, False),
    ("makespan", ("simulated 10:1", "makespan / lower bound"), "the same, simulated 10:1, 16 batches", 1.12, False),
    (
        "makespan",
        ("simulated three, 20% jitter", "makespan / lower bound"),
        "the same, simulated three devices with 20% jitter, 250 batches",
        1.05,
        False,
    ),
]

_SERVERS = {
    "small": "hasten",
    "fastapi": "FastAPI on uvicorn, raw body",
    "litserve": "LitServe, JSON",
    "mlserver": "MLServer, JSON, no workers",
    "pytriton": "Triton, Python backend, binary",
    "ray": "Ray Serve, raw body",
}
_COLUMNS = (
    "throughput / runtime alone",
    "server CPU per request beyond the model, us",
    "the same / the model's CPU time",
    "p50 of one client / model time",
    "p99 / p50, 16 clients",
)


def page(results: Mapping[str, Any]) -> str:
    """The page; rows that were not measured say so."""
    rows = {name: row["found"] for name, row in results.get("rows", {}).items()}
    machine = results["machine"]
    parts = [_INTRODUCTION, f"Machine: {machine['cpu']}, {machine['usable_cores']} cores, {machine['system']}.\n"]
    notes: dict[str, list[str]] = {}
    for name, row in results.get("rows", {}).items():
        if row.get("note"):
            notes.setdefault(row["note"], []).append(f"`{name}`")
    if notes:
        parts.append(
            "Conditions:\n\n" + "\n".join(f"- {', '.join(names)}: {note}" for note, names in notes.items()) + "\n"
        )
    parts += [_goals(rows), _servers(rows), _memory(rows), _fused(rows), _splitting(rows), _soak(rows)]
    return "\n".join(part for part in parts if part)


def _goals(rows: Mapping[str, Any]) -> str:
    lines = ["## Goals\n", "| what | measured | target | met |", "|---|---|---|---|"]
    for row, path, name, target, larger in _TARGETS:
        value = rows.get(row)
        for key in path:
            value = None if value is None else value.get(key)
        if value is None:
            lines.append(f"| {name} | not measured | {_bound(target, larger)} | |")
            continue
        middle = value["median"] if isinstance(value, dict) else value
        met = "" if target is None else "yes" if (middle >= target if larger else middle <= target) else "**no**"
        lines.append(f"| {name} | {_number(value)} | {_bound(target, larger)} | {met} |")
    return "\n".join(lines) + "\n"


def _bound(target: float | None, larger: bool) -> str:
    return "" if target is None else f"{'at least' if larger else 'at most'} {target:g}"


def _number(value: Any) -> str:
    if not isinstance(value, dict):
        return f"{value:.3g}"
    return f"{value['median']:.3g} [{value['low']:.3g}, {value['high']:.3g}]"


def _servers(rows: Mapping[str, Any]) -> str:
    lines = [
        "## Servers over the small network\n",
        "The same ONNX file and session options, two replicas, the same load generator; one server at a time.\n",
        "| server | " + " | ".join(_COLUMNS) + " | ready, s | memory, MB |",
        "|---|" + "---|" * (len(_COLUMNS) + 2),
    ]
    for row, name in _SERVERS.items():
        found = rows.get(row)
        if found is None or "missing" in found:
            reason = "not measured" if found is None else found["missing"]
            lines.append(f"| {name} | {reason.replace('|', ' ')} |" + " |" * (len(_COLUMNS) + 1))
            continue
        cells = [_number(found[column]) for column in _COLUMNS]
        cells += [f"{found['ready, s']:.2f}", f"{found['memory, bytes'] / 1e6:.0f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _section(row: str, text: Callable[[Any], str]) -> Callable[[Mapping[str, Any]], str]:
    return lambda rows: text(rows[row]) if row in rows else ""


def _memory_text(found: Any) -> str:
    beyond = found["memory, bytes"] - found["memory of the runtime and the model alone, bytes"]
    return f"Memory of hasten's server beyond the loaded model: {beyond / 1e6:.0f} MB (target: at most 60).\n"


def _fused_text(found: Any) -> str:
    lines = [
        "## Normalisation inside the graph\n",
        "Rows per second with uint8 images that the graph normalises / with float32 images that numpy normalises",
        "before they are sent to the replicas; batches of 8, large network.\n",
        "| runtime, replicas as | inside / outside |",
        "|---|---|",
    ]
    lines += [f"| {name} | {_number(value['inside / outside, rows/s'])} |" for name, value in found.items()]
    return "\n".join(lines) + "\n"


def _splitting_text(found: Any) -> str:
    lines = ["## One graph over two targets\n"]
    for name, bed in found.items():
        if bed["accepted"]:
            rates = ", ".join(f"{key} {rate:.0f}" for key, rate in bed["rows/s"].items())
            lines.append(
                f"- {name}: **accepted**, {bed['gain']:.2f}x the best whole graph; {bed['targets'][0]} up to "
                f"`{bed['after']}`, then {bed['targets'][1]}. Rows per second: {rates}."
            )
        else:
            lines.append(f"- {name}: **refused**. {bed['message']}")
    return "\n".join(lines) + "\n"


def _soak_text(found: Any) -> str:
    memory = [
        f"{found[f'memory at {when}, bytes'] / 1e6:.1f}" for when in ("the start", "a fifth of the time", "the end")
    ]
    return (
        "## Soak\n\n"
        f"{found['minutes']:g} minutes, 8 clients, requests of 1 to 8 rows, every answer checked, a reload every 5 s:\n"
        f"{found['answers']} answers, {found['lost']} lost, {found['swapped or wrong']} swapped or wrong, "
        f"{found['reloads']} reloads; memory {memory[0]} MB at the start, {memory[1]} MB at a fifth of the time, "
        f"{memory[2]} MB at the end.\n"
    )


_memory = _section("small", _memory_text)
_fused = _section("fused", _fused_text)
_splitting = _section("splitting", _splitting_text)
_soak = _section("soak", _soak_text)
