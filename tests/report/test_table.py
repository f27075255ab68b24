"""The text at the end of a run, on a narrow terminal."""

import json
from pathlib import Path

from rich.console import Console
from run_folder import write_run

from hasten.report.table import result_table


def test_the_table_fits_80_columns_and_names_are_whole(tmp_path: Path) -> None:
    write_run(tmp_path, 12)
    result = json.loads((tmp_path / "result.json").read_text())
    failed = result["trials"][5]
    failed |= {"failure": "Unsupported: the graph has " + "long words " * 12, "latency": None}
    console = Console(width=80, file=(tmp_path / "shown").open("w"))
    console.print(result_table(result))
    console.file.close()
    shown = (tmp_path / "shown").read_text()
    assert max(map(len, shown.splitlines())) <= 80
    lines = result_table(result).plain.splitlines()
    for trial in result["trials"][1:]:
        assert trial["name"] in lines
    assert lines.index("Failed:") < lines.index(failed["name"])
    assert f"  {failed['failure']}" in lines, "the reason is not cut"
    timed = [line for line in lines if " [" in line and line.startswith("  ") and line[2].isdigit()]
    ratios = [float(line.split()[0]) for line in timed]
    assert ratios == sorted(ratios, reverse=True)
    assert len(ratios) == len([t for t in result["trials"] if not t["failure"]])
    assert sum("passed" in line for line in timed) == 1
