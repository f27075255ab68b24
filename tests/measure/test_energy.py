"""The energy counter, on a folder laid out like the kernel's."""

from pathlib import Path

import pytest

import hasten
from hasten.errors import InvalidInput
from hasten.measure.energy import EnergyCounter
from hasten.task import Budget


def _zone(root: Path, name: str, microjoules: int) -> None:
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / "energy_uj").write_text(f"{microjoules}\n")
    (root / name / "max_energy_range_uj").write_text("1000000\n")


def test_packages_are_added_and_a_wrap_is_made_good(tmp_path: Path) -> None:
    _zone(tmp_path, "intel-rapl:0", 900_000)
    _zone(tmp_path, "intel-rapl:1", 100)
    _zone(tmp_path, "intel-rapl:0:0", 5)  # a part of package 0
    counter = EnergyCounter(tmp_path)
    _zone(tmp_path, "intel-rapl:0", 100_000)
    _zone(tmp_path, "intel-rapl:1", 300_100)
    assert counter.joules() == pytest.approx(0.5)
    assert counter.joules() == 0.0


def test_a_machine_without_counters_is_refused_before_the_search(digits_task: hasten.Task, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"energy is not: .* has no RAPL counter"):
        EnergyCounter(tmp_path)
    if not list(Path("/sys/class/powercap").glob("*rapl:*")):
        with pytest.raises(InvalidInput, match="Choose latency, throughput or size"):
            hasten.run(digits_task, Budget(max_drop=0.02, objective="energy"), targets="null", out=tmp_path / "r")
