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
WIDTH = 920


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
    """Every measured trial, fastest first, as Markdown."""
    finals = {final["number"]: final for final in result["finals"]}
    rows = ["| " + " | ".join(headers) + " |", "|---|--:|--:|--:|--:|---|"]
    measured = [t for t in result["trials"] if t["latency"]]
    for trial in sorted(measured, key=lambda t: -latency_of(t, finals)["ratio"]):
        x, final = latency_of(trial, finals), finals.get(trial["number"])
        name = "original (PyTorch eager)" if trial["number"] == 0 else trial["name"]
        bound = f"{final['certificate']['upper_bound']:.4f}" if final else ""
        verdict = ("passed" if final["certificate"]["passed"] else "not certified") if final else ""
        ratio = f"{x['ratio']:.2f} [{x['ratio_low']:.2f}, {x['ratio_high']:.2f}]"
        rows.append(f"| {name} | {x['median_ms']:.2f} | {ratio} | {trial['score']:.4f} | {bound} | {verdict} |")
    return "\n".join(rows)


def picture(result: dict[str, Any]) -> str:
    """Times faster as bars, one for each candidate; certified ones filled green."""
    finals = {final["number"]: final for final in result["finals"]}
    measured = sorted((t for t in result["trials"] if t["latency"]), key=lambda t: -latency_of(t, finals)["ratio"])
    longest = max(latency_of(t, finals)["ratio_high"] for t in measured)
    height, label = 28, 470
    scale = (WIDTH - label - 110) / longest
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height * len(measured) + 30}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{label}" y="16" fill="#555">times faster than PyTorch eager at batch 1</text>',
    ]
    for row, trial in enumerate(measured):
        x, y = latency_of(trial, finals), 26 + row * height
        final = finals.get(trial["number"])
        passed = final is not None and final["certificate"]["passed"]
        name = "original (PyTorch eager)" if trial["number"] == 0 else trial["name"]
        fill = "#2e7d32" if passed else "#b0bec5"
        bar = x["ratio"] * scale
        note = " certified" if passed else ""
        lines += [
            f'<text x="{label - 8}" y="{y + 17}" text-anchor="end" fill="#1a1a1a">{name}</text>',
            f'<rect x="{label}" y="{y + 3}" width="{bar:.1f}" height="{height - 8}" fill="{fill}"/>',
            f'<text x="{label + bar + 6:.1f}" y="{y + 17}" fill="#1a1a1a">{x["ratio"]:.1f}x{note}</text>',
        ]
    return "\n".join([*lines, "</svg>\n"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
