"""Judged quantities: one set of names for every target."""

from pathlib import Path

import pytest

from hasten import judged
from hasten.errors import InvalidInput


def test_what_is_written_is_read_and_added_to(tmp_path: Path) -> None:
    assert judged.read(tmp_path) == {}
    judged.write(tmp_path, {"luts": 12, "cycles": 3})
    judged.write(tmp_path, {"clock_mhz": 57.5, "cycles": 4})
    assert judged.read(tmp_path) == {"luts": 12, "cycles": 4, "clock_mhz": 57.5}


def test_an_unknown_quantity_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="Did you mean 'luts'"):
        judged.write(tmp_path, {"lut": 1})


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "judged.json").write_text('{"luts": "many"}')
    with pytest.raises(InvalidInput, match="numbers by name"):
        judged.read(tmp_path)
