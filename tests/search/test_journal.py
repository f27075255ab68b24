"""The journal: what is on record is not made again, and a kill in the middle of a line costs that line only."""

from pathlib import Path
from typing import Any

import pytest

from hasten.errors import InvalidInput
from hasten.search.journal import Journal


def test_a_torn_last_line_is_cut_and_the_next_event_follows_whole_ones(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).append("begin", {"a": 1})
    with path.open("a") as file:
        file.write('{"event": "tri')
    journal = Journal(path)
    assert [e["event"] for e in journal.read()] == ["begin"]
    journal.append("trial", {"b": 2}, "x")
    assert [(e["event"], e["key"]) for e in Journal(path).read()] == [("begin", ""), ("trial", "x")]


def test_a_whole_line_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "begin", "key": "", "elapsed_s": 1}\nnonsense\n')
    with pytest.raises(InvalidInput, match="line 2 is none"):
        Journal(path)


def test_what_is_on_record_is_not_made_again(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"value": len(made)}

    first = Journal(tmp_path / "journal.jsonl")
    assert first.once("probe", "a", make)["value"] == 1
    assert first.once("probe", "a", make)["value"] == 1
    again = Journal(tmp_path / "journal.jsonl")
    assert again.once("probe", "a", make)["value"] == 1
    assert again.once("probe", "b", make)["value"] == 2
    assert again.elapsed_s >= first.read()[-1]["elapsed_s"]


def test_time_of_earlier_sessions_counts(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "begin", "key": "", "elapsed_s": 100.5}\n')
    assert Journal(path).elapsed_s >= 100.5
