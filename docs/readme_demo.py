"""Write what `make demo` measured into the READMEs: the table between the demo markers, and the picture beside it.

python docs/readme_demo.py runs/demo
"""

import json
import sys
from pathlib import Path
from typing import Any

from hasten.report.table import latency_of

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- demo:begin -->", "<!-- demo:end -->"
HEADERS = {
    "README.md": ("candidate", "ms", "times faster [95%]", "score", "drop at most", "verdict"),
    "README.zh-CN.md": ("候选", "毫秒", "加速比 [95%]", "得分", "下降上界", "结论"),
}
CAPTIONS = {
    "README.md": "Batch 1 on {cpu}, {cores} cores; score on the search part, the bound on the certifying part "
    "({n} photographs).",
    "README.zh-CN.md": "批大小 1，{cpu}，{cores} 核；得分取自搜索部分，上界取自认证部分（{n} 张照片）。",
}
WIDTH, HEIGHT = 920, 420
LEFT, TOP, BOTTOM = 80, 50, 60
ROWS = 6


def main(run: Path) -> None:
    """Write the picture and both tables."""
    result = json.loads((run / "result.json").read_text())
    (ROOT / "docs" / "pictures" / "demo.svg").write_text(picture(result))
    for name, headers in HEADERS.items():
        path = ROOT / name
        before, rest = path.read_text().split(BEGIN)
        after = rest.split(END)[1]
        caption = CAPTIONS[name].format(
            cpu=result["device"]["cpu"], cores=result["device"]["cores"], n=result["certify"]
        )
        body = f"\n![demo](docs/pictures/demo.svg)\n\n{table(result, headers)}\n\n{caption}\n"
        path.write_text(before + BEGIN + body + END + after)


def table(result: dict[str, Any], headers: tuple[str, ...]) -> str:
    """The original, what was certified, and the fastest of the rest, as Markdown."""
    finals = {final["number"]: final for final in result["finals"]}
    rows = ["| " + " | ".join(headers) + " |", "|---|--:|--:|--:|--:|---|"]
    ranked = _ranked(result, finals)
    shown = {trial["number"] for trial in ranked[:ROWS]} | set(finals) | {0}
    for trial in (t for t in ranked if t["number"] in shown):
        x, final = latency_of(trial, finals), finals.get(trial["number"])
        bound = f"{final['certificate']['upper_bound']:.4f}" if final else ""
        verdict = ("passed" if final["certificate"]["passed"] else "not certified") if final else ""
        ratio = f"{x['ratio']:.2f} [{x['ratio_low']:.2f}, {x['ratio_high']:.2f}]"
        rows.append(f"| {_name(trial)} | {x['median_ms']:.2f} | {ratio} | {trial['score']:.4f} | {bound} | {verdict} |")
    return "\n".join(rows)


def picture(result: dict[str, Any]) -> str:
    """Score against speed: every trial a dot, those that none beats in both on a line, those certified filled."""
    finals = {final["number"]: final for final in result["finals"]}
    trials = _ranked(result, finals)
    best = result.get("best_number")
    speeds = [latency_of(t, finals)["ratio"] for t in trials]
    scores = [t["score"] for t in trials]
    room = 0.1 * (max(scores) - min(scores)) or 0.01
    low, high, fastest = min(scores) - room, max(scores) + room, 1.08 * max(speeds)

    def at(trial: dict[str, Any]) -> tuple[float, float]:
        across = latency_of(trial, finals)["ratio"] / fastest
        up = (trial["score"] - low) / (high - low)
        return LEFT + across * (WIDTH - LEFT - 30), TOP + (1 - up) * (HEIGHT - TOP - BOTTOM)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" '
        'font-size="14">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        *_axes(fastest, low, high),
    ]
    edge = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, _unbeaten(trials)))
    lines.append(f'<polyline points="{edge}" fill="none" stroke="#90a4ae" stroke-width="1.5"/>')
    for trial in trials:
        x, y = at(trial)
        passed = trial["number"] in finals and finals[trial["number"]]["certificate"]["passed"]
        fill = "#2e7d32" if passed else "#1a1a1a" if trial["number"] == 0 else "#ffffff"
        lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{fill}" stroke="#546e7a" stroke-width="1.5"/>')
        if trial["number"] in (0, best):
            ratio = latency_of(trial, finals)["ratio"]
            text = "original" if trial["number"] == 0 else f"{ratio:.1f} times faster, certified"
            side = "start" if x < WIDTH / 2 else "end"
            lines.append(f'<text x="{x:.1f}" y="{y - 14:.1f}" text-anchor="{side}" fill="#1a1a1a">{text}</text>')
    return "\n".join([*lines, "</svg>\n"])


def _axes(fastest: float, low: float, high: float) -> list[str]:
    lines = [
        f'<path d="M{LEFT},{TOP} V{HEIGHT - BOTTOM} H{WIDTH - 30}" fill="none" stroke="#546e7a"/>',
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 12}" text-anchor="middle" fill="#37474f">'
        "times faster than PyTorch eager at batch 1</text>",
        f'<text x="{LEFT}" y="{TOP - 14}" text-anchor="middle" fill="#37474f">score</text>',
    ]
    step = max(1, round(fastest / 8))
    for value in range(0, int(fastest) + 1, step):
        x = LEFT + value / fastest * (WIDTH - LEFT - 30)
        lines.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle" fill="#546e7a">{value}</text>')
    for share in (0.0, 0.5, 1.0):
        y = TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)
        text = f"{low + share * (high - low):.3f}"
        lines.append(f'<text x="{LEFT - 8}" y="{y + 5:.1f}" text-anchor="end" fill="#546e7a">{text}</text>')
    return lines


def _ranked(result: dict[str, Any], finals: dict[int, Any]) -> list[dict[str, Any]]:
    """Measured trials, fastest first."""
    return sorted((t for t in result["trials"] if t["latency"]), key=lambda t: -latency_of(t, finals)["ratio"])


def _unbeaten(ranked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for trial in ranked:
        if not kept or trial["score"] > kept[-1]["score"]:
            kept.append(trial)
    return kept


def _name(trial: dict[str, Any]) -> str:
    return "original (PyTorch eager)" if trial["number"] == 0 else trial["name"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
