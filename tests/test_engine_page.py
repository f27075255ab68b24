"""docs/engine.md is what the results say, and the soak notices a swapped answer."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine_bench.page import page

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "engine.json"


def test_the_page_is_what_was_measured() -> None:
    assert (ROOT / "docs" / "engine.md").read_text() == page(json.loads(RESULTS.read_text()))


@pytest.mark.parametrize(("median", "met"), [(0.5, "**no**"), (0.8, "yes")])
def test_a_missed_goal_is_said(median: float, met: str) -> None:
    ratio = {"median": median, "low": median, "high": median, "repeats": 3}
    results: dict[str, Any] = {
        "machine": {"cpu": "x", "usable_cores": 2, "system": "y"},
        "rows": {
            "overload": {"found": {"answers within the bound / capacity": ratio}},
            "mlserver": {"found": {"missing": "it did not serve: because"}},
        },
    }
    text = page(results)
    line = next(x for x in text.splitlines() if "at 3x load" in x)
    assert line.endswith(f"| {met} |")
    assert "it did not serve: because" in text
    assert "| not measured |" in text
