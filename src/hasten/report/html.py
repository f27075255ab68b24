"""One self-contained HTML file about a run: front, trials, certificate, how to reproduce. Opens from disk."""

import json
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
import plotly.io

from hasten.errors import InvalidInput
from hasten.report.table import latency_of


def write_report(folder: Path) -> Path:
    """Render `result.json` of a run folder to `report.html` beside it and return its path.

    Raises:
        InvalidInput: The folder holds no finished run.
    """
    source = folder / "result.json"
    if not source.is_file():
        raise InvalidInput(f"A report needs a finished run, but {folder} has no result.json. Run `hasten run` first.")
    result = json.loads(source.read_text())
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hasten", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        result=result,
        finals={final["number"]: final for final in result["finals"]},
        chart=plotly.io.to_html(_front_chart(result), include_plotlyjs=True, full_html=False, div_id="front"),
    )
    target = folder / "report.html"
    scratch = folder / ".report.html"
    scratch.write_text(page)
    scratch.rename(target)
    return target


def _front_chart(result: dict[str, Any]) -> go.Figure:
    """Score against latency for every measured trial; certified finalists are marked."""
    passed = {f["number"] for f in result["finals"] if f["certificate"]["passed"]}
    finals = {final["number"]: final for final in result["finals"]}
    measured = [t | {"latency": latency_of(t, finals)} for t in result["trials"] if t["latency"]]
    groups = (
        ("original", "diamond", [t for t in measured if t["number"] == 0]),
        ("certified", "star", [t for t in measured if t["number"] in passed]),
        ("tried", "circle", [t for t in measured if t["number"] and t["number"] not in passed]),
    )
    figure = go.Figure(
        [
            go.Scatter(
                x=[t["latency"]["median_ms"] for t in trials],
                y=[t["score"] for t in trials],
                text=[t["name"] for t in trials],
                customdata=[t["latency"]["ratio"] for t in trials],
                hovertemplate="%{text}<br>%{x:.2f} ms, %{customdata:.2f}x<br>score %{y:.4f}<extra></extra>",
                mode="markers",
                name=label,
                marker={"symbol": symbol, "size": 13},
            )
            for label, symbol, trials in groups
            if trials
        ]
    )
    figure.update_layout(
        xaxis={"title": "latency at batch 1 (ms, median)", "type": "log"},
        yaxis={"title": "mean score on the search part"},
        template="plotly_white",
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        height=420,
    )
    return figure
