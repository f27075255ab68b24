"""docs/benchmarks.md and README's headline numbers, from the results alone: nothing here is typed."""

import re
import tomllib
from pathlib import Path
from typing import Any

from hasten.errors import InvalidInput
from hasten_bench import results
from hasten_bench.material import REPOSITORY
from hasten_bench.registry import peers

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
BUSY = 0.5
READMES = {
    "README.md": {
        "head": "network|hasten's fastest|speed against PyTorch eager|against the fastest peer that keeps accuracy",
        "below": "Batch 1, {devices} cores.{rough} All rows and intervals: [docs/benchmarks.md](docs/benchmarks.md).",
        "rough": " Taken on a busy machine: rough.",
        "none": "No measurements yet.",
    },
    "README.zh-CN.md": {
        "head": "网络|hasten 的最快版本|相对 PyTorch eager 的速度|相对保持精度的最快同类工具",
        "below": "批大小 1，{devices} 核。{rough}全部数据与置信区间见 [docs/benchmarks.md](docs/benchmarks.md)。",
        "rough": "测量时机器繁忙，数字粗略。",
        "none": "尚无测量结果。",
    },
}
REASONS = Path(__file__).with_name("reasons.toml")


def render(repository: Path = REPOSITORY, folder: Path = results.FOLDER) -> list[Path]:
    """Write the pages; returns what was written.

    Raises:
        InvalidInput: There are no results.
    """
    documents = results.read_all(folder)
    contests = [d for d in documents if d["kind"] == "contest"]
    if not contests:
        raise InvalidInput(f"There must be results to render, but {folder} has none. Run `hasten-bench` first.")
    work = latest(contests)
    growth = [d for d in documents if d["kind"] == "growth"]
    page = repository / "docs" / "benchmarks.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text(document(work, growth[-1] if growth else None))
    written = [page]
    for name, words in READMES.items():
        readme = repository / name
        if readme.exists() and BEGIN in readme.read_text():
            readme.write_text(with_headline(readme.read_text(), headline(work, words)))
            written.append(readme)
    return written


def latest(contests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The newest measurement of every network, each with the run it came from; a full run outranks a quick one."""
    found: dict[str, dict[str, Any]] = {}
    for run in sorted(contests, key=lambda d: (not is_quick(d), d["started"])):
        for item in run["workloads"]:
            if item["rows"] or item["net"] not in found:
                found[item["net"]] = item | {"run": {k: v for k, v in run.items() if k != "workloads"}}
    return found


def is_quick(run: dict[str, Any]) -> bool:
    """Whether a run was made with `--quick` or for some peers only."""
    return bool(run["quick"])


def document(work: dict[str, dict[str, Any]], growth: dict[str, Any] | None) -> str:
    """The whole page."""
    parts = [
        "# Benchmarks",
        "Written by `hasten-bench render` from `benchmarks/results/*.json`; do not edit. What is compared and how: "
        "`benchmarks/README.md` in the repository.",
        "Every ratio is against PyTorch eager on the same machine, taken in turns in one run, at batch 1 with the 95% "
        "bootstrap interval of its median. A tool's row counts only where it keeps the accuracy.",
        "## Where hasten is not the fastest",
        *not_fastest(work),
        "## Fastest against fastest",
        *finals(work),
        *(part for item in work.values() for part in section(item)),
    ]
    if growth is not None:
        parts += growth_section(growth)
    return "\n\n".join(parts) + "\n"


NOWHERE = "Nowhere in these runs."


def not_fastest(work: dict[str, dict[str, Any]]) -> list[str]:
    """One line for every peer that is faster than hasten's fastest at batch 1, for the one with the largest throughput
    if that is not hasten, and where hasten has no row that counts.
    """
    reasons = tomllib.loads(REASONS.read_text())
    lines = []
    for net, item in work.items():
        if "skipped" in item:
            continue
        why = reasons.get(net, "not explained yet")
        final = item.get("finals") or {}
        if not final:
            lines.append(f"- **{item['title']}**: hasten has no row that keeps the accuracy in this run. {why}")
            continue
        for name, latency in _ranked(final):
            if name != final["hasten"] and latency["ratio"] > 1:
                lines.append(
                    f"- **{item['title']}**: {_label(name)} is {_ratio(latency)} times as fast as "
                    f"{_label(final['hasten'])}. {why}"
                )
        lines += _more_throughput(item)
    return ["\n".join(lines)] if lines else [NOWHERE]


def _more_throughput(item: dict[str, Any]) -> list[str]:
    rows = [r for r in item["rows"] if not r["failure"] and r["quality"]["keeps"] and r["throughput"]]
    rows.sort(key=lambda r: -r["throughput"]["samples_per_s"])
    own = next((r for r in rows if r["peer"] == "hasten"), None)
    if own is None or rows[0] is own:
        return []
    first, second = (_label(f"{r['peer']}/{r['variant']}") for r in (rows[0], own))
    times = rows[0]["throughput"]["samples_per_s"] / own["throughput"]["samples_per_s"]
    return [
        f"- **{item['title']}**: in throughput, each at its best batch, {first} reaches {times:.2f} times that of "
        f"{second}, hasten's best row. A search for latency does not seek it; `--objective throughput` does."
    ]


def finals(work: dict[str, dict[str, Any]]) -> list[str]:
    """The head-to-head table: the fastest accurate program of each peer, timed in one group."""
    rows = []
    for item in work.values():
        final = item.get("finals") or {}
        for name, latency in _ranked(final):
            rows.append([item["title"], _label(name), _ms(latency), _ratio(latency)])
    if not rows:
        return ["No run has them yet."]
    return [table(["network", "program", "ms at batch 1", "times as fast as hasten's fastest"], rows)]


def section(item: dict[str, Any]) -> list[str]:
    """One network's heading, circumstances and table."""
    run = item["run"]
    parts = [f"## {item['title']}"]
    if "skipped" in item:
        return [*parts, f"Skipped: {item['skipped']}."]
    cores = run["device"]["cores"]
    rough = f" **The machine was busy (load {load_of(item)}): these timings are rough.**" if is_rough(item) else ""
    kind = "a quick run" if is_quick(run) else "a full run"
    limits = sorted({row["made"]["limit_s"] for row in item["rows"] if row["made"]})
    ended = f" Tools were ended after {' or '.join(str(x) for x in limits)} s." if limits else ""
    parts.append(
        f"{run['device']['cpu']}, {cores} cores, {run['started'][:10]}, commit `{run['commit'][:10]}`, {kind} "
        f"(`{run['file']}`).{ended}{rough}"
    )
    head = [
        "tool",
        "variant",
        "times eager",
        "ms",
        "per second",
        *_quality_head(item),
        "MB",
        "peak MB",
        "tool CPU s",
        "lines",
    ]
    return [*parts, table(head, [_row(item, row) for row in _sorted(item["rows"])])]


def load_of(item: dict[str, Any]) -> float:
    """Processes that wanted a core in the minute before a network was begun."""
    return float(item.get("load_average_before", [0.0])[0])


def is_rough(item: dict[str, Any]) -> bool:
    """Whether others used the machine noticeably."""
    return load_of(item) > BUSY


def _quality_head(item: dict[str, Any]) -> list[str]:
    return ["score [95%]", "drop (upper bound)"] if item["trained"] else ["cosine to the original"]


def _sorted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def key(row: dict[str, Any]) -> tuple[int, float]:
        if row["failure"]:
            return 2, 0.0
        return (0 if row["quality"]["keeps"] else 1), -row["latency"]["ratio"]

    return sorted(rows, key=key)


def _row(item: dict[str, Any], row: dict[str, Any]) -> list[str]:
    quality = 2 if item["trained"] else 1
    name = [peers()[row["peer"]].title if row["peer"] in peers() else row["peer"], row["variant"]]
    if row["failure"]:
        return [*name, f"failed: {row['failure']}"[:160], *[""] * (6 + quality)]
    tool = [f"{row['tool']['cpu_seconds']:.0f}", str(row["tool"]["lines"])]
    rate = f"{row['throughput']['samples_per_s']:.0f}" if row["throughput"] else ""
    sizes = [f"{row['size_bytes'] / 1e6:.1f}", f"{row['peak_bytes'] / 1e6:.0f}"]
    return [*name, _ratio(row["latency"]), _ms(row["latency"]), rate, *_quality(item, row["quality"]), *sizes, *tool]


def _quality(item: dict[str, Any], quality: dict[str, Any]) -> list[str]:
    if not item["trained"]:
        return [f"{quality['value']:.4f}"]
    value = f"{quality['value']:.3f} [{quality['low']:.3f}, {quality['high']:.3f}]"
    lost = "" if quality["keeps"] else " **lost**"
    return [value, f"{quality['drop']:+.4f} ({quality['drop_upper']:.4f}){lost}"]


def growth_section(growth: dict[str, Any]) -> list[str]:
    """Exponents of every stage, those clearly above linear named."""
    rows = [
        [s["family"], s["axis"], s["stage"], str(s["sizes"]), _exponent(s["seconds"]), _exponent(s["peak_bytes"])]
        for s in growth["slopes"]
    ]
    above = [f"{s['stage']} ({s['family']}, {s['axis']})" for s in growth["slopes"] if s["seconds"]["low"] > 1]
    failed = [
        f"- {p['family']}, {p['size']:,} {p['axis']}, {p['stage']}: {p['failure']}"
        for p in growth["points"]
        if "failure" in p
    ]
    largest = max((p["size"] for p in growth["points"] if p["axis"] == "parameters"), default=0)
    return [
        "## Growth",
        "Exponents of processor time (of the search: wall time) and of peak memory against the number of parameters, "
        "of calibration samples or of trials (1 is linear), with 95% intervals. Each size ran in a process of its own; "
        f"the largest had {largest:,} parameters. `{growth['file']}`.",
        table(["family", "against", "stage", "sizes", "time", "peak memory"], rows),
        f"Clearly above linear: {', '.join(above) if above else 'none'}.",
        *_largest(growth, largest),
        *(["\n".join(["Failed:", "", *failed])] if failed else []),
    ]


def _largest(growth: dict[str, Any], size: int) -> list[str]:
    """What each stage took at the largest size."""
    points = [p for p in growth["points"] if p["size"] == size and p["axis"] == "parameters" and "seconds" in p]
    rows = [[p["family"], p["stage"], f"{p['seconds']:.0f}", f"{p['peak_bytes'] / 1e9:.1f}"] for p in points]
    head = ["family", "stage", "s", "peak GB of the whole process"]
    return [f"At {size:,} parameters ({4 * size / 1e9:.1f} GB of weights):", table(head, rows)] if rows else []


def _exponent(fit: dict[str, float]) -> str:
    return f"{fit['slope']:.2f} [{fit['low']:.2f}, {fit['high']:.2f}]"


def headline(work: dict[str, dict[str, Any]], words: dict[str, str]) -> str:
    """README's table: hasten's fastest on every network with data, against eager and against the best peer.

    Args:
        work: The newest measurement of every network.
        words: The text in README's language, see `READMES`.
    """
    rows = []
    for item in work.values():
        final = item.get("finals") or {}
        if not item["trained"] or not final:
            continue
        others = [(name, x) for name, x in _ranked(final) if name not in (final["hasten"], "eager/fp32")]
        eager = final["latency"].get("eager/fp32")
        rows.append([
            item["title"],
            _label(final["hasten"]),
            f"{1 / eager['ratio']:.1f}x" if eager else "",
            f"{_times_slower(others[0][1])} ({_label(others[0][0])})" if others else "",
        ])  # fmt: skip
    if not rows:
        return words["none"]
    shown = [item for item in work.values() if item["trained"] and item.get("finals")]
    devices = sorted({f"{item['run']['device']['cpu']}, {item['run']['device']['cores']}" for item in shown})
    rough = words["rough"] if any(map(is_rough, shown)) else ""
    return (
        f"{table(words['head'].split('|'), rows)}\n\n{words['below'].format(devices='; '.join(devices), rough=rough)}"
    )


def _times_slower(latency: dict[str, Any]) -> str:
    """How much slower than what it is compared with, with the interval."""
    return f"{1 / latency['ratio']:.2f}x [{1 / latency['ratio_high']:.2f}, {1 / latency['ratio_low']:.2f}]"


def with_headline(readme: str, text: str) -> str:
    """README with `text` between the markers; everything else as it is."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", readme)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def _ranked(final: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return sorted(final.get("latency", {}).items(), key=lambda x: -x[1]["ratio"])


def _label(name: str) -> str:
    peer, _, variant = name.partition("/")
    known = peers()
    return f"{known[peer].title if peer in known else peer}, {variant}"


def _ratio(latency: dict[str, Any]) -> str:
    return f"{latency['ratio']:.2f} [{latency['ratio_low']:.2f}, {latency['ratio_high']:.2f}]"


def _ms(latency: dict[str, Any]) -> str:
    return f"{latency['median_ms']:.3g}"
