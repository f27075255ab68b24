"""One self-contained HTML file about a run: it opens from disk, loads nothing, and shows what the run folder holds."""

import functools
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from hasten.report.data import run_data


def write_report(folder: Path) -> Path:
    """Render a run folder to `report.html` inside it and return its path.

    Raises:
        InvalidInput: The folder holds no run.
    """
    target, scratch = folder / "report.html", folder / ".report.html"
    scratch.write_text(page(run_data(folder)), encoding="utf-8")
    scratch.rename(target)
    return target


def page(data: dict[str, Any], live: bool = False) -> str:
    """The page as HTML.

    Args:
        data: From `run_data`.
        live: Ask `data.json` beside the page for newer data every two seconds, until the run has finished.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_part("page.html")).render(
        title=data["task"],
        style=_part("page.css"),
        plotly=_plotly(),
        script="\n".join(_part(name) for name in ("words.js", "charts.js", "trials.js", "verdict.js", "page.js")),
        data=as_json(data),
        live="true" if live else "false",
    )


def as_json(data: dict[str, Any]) -> str:
    """JSON that may stand inside a script element: no sequence in it can end the element."""
    return json.dumps(_finite(data), allow_nan=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for, like the bound of too few samples."""
    if isinstance(value, dict):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@functools.cache
def _part(name: str) -> str:
    return resources.files("hasten.report").joinpath("page", name).read_text(encoding="utf-8")


@functools.cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source
