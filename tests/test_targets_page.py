"""The generated page of targets, and that only what is timed may compete for speed."""

import json
from pathlib import Path

import pytest

from hasten.errors import InvalidInput
from hasten.recipe import targets
from hasten.report.targets import targets_page
from hasten.search.space import usable_targets


def test_the_page_has_every_target_and_says_what_its_measurements_are() -> None:
    page = targets_page()
    for name, part in targets().items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert part.evidence in row
    assert "## Measured" not in page


def test_measured_rows_are_shown_with_what_was_not_timed(tmp_path: Path) -> None:
    rows = [
        {"target": "a", "evidence": "timed", "ratio": 2.0, "low": 1.5, "high": 2.5, "error": 1e-7},
        {"target": "b", "evidence": "estimated", "error": 0.01, "report": "hbm_bytes 5"},
        {"target": "c", "evidence": "timed", "failure": "needs: x"},
    ]
    (tmp_path / "m.json").write_text(
        json.dumps({"network": "N", "machine": "M", "installed_mb": {"xla": 626}, "rows": rows})
    )
    page = targets_page(tmp_path / "m.json")
    assert next(line for line in page.splitlines() if line.startswith("| `xla` |")).endswith("| xla, 0.6 GB |")
    assert "| a | timed | 2.00 [1.50, 2.50] | 1.0e-07 |" in page
    assert "| b | estimated | not timed | 1.0e-02 | hbm_bytes 5 |" in page
    assert "| c | timed | not timed | needs: x |" in page


def test_logic_is_shown_beside_its_accuracy(tmp_path: Path) -> None:
    row = {"sparsity": 0.5, "weights": "4 bits", "accuracy": 0.9, "nonzero_weights": 1000, "lut": 2000, "ff": 30}
    row |= {"dsp": 0, "cycles": 4, "mismatches": 0, "tool": "yosys"}
    (tmp_path / "l.json").write_text(json.dumps({"network": "N", "test_samples": 7, "rows": [row]}))
    assert "| 50% | 4 bits | 90.0% | 1,000 | 2,000 | 30 | 0 | 4 | 0 |" in targets_page(logic=tmp_path / "l.json")


def test_what_tests_are_made_of_is_tried_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.environments.missing", lambda _: "")
    usable, _ = usable_targets("auto")
    assert "null" not in usable
    assert set(usable_targets("null")[0]) == {"null"}


def test_what_is_not_timed_cannot_compete_for_speed() -> None:
    with pytest.raises(InvalidInput, match=r"tpu is estimated.*--limit NAME=VALUE.*hbm_bytes"):
        usable_targets("tpu")
    usable, missing = usable_targets("auto")
    assert not {"tpu", "fpga"} & (set(usable) | set(missing))
