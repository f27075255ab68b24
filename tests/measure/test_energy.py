"""The energy counter, on a folder laid out like the kernel's."""

from pathlib import Path
from typing import Any

import pytest

import hasten
from hasten.errors import InvalidInput
from hasten.measure.energy import EnergyCounter, compare_energy
from hasten.measure.worker import WARM_CALLS
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


def test_what_counts_the_packages_once_more_is_left_out(tmp_path: Path) -> None:
    for name, label in (("intel-rapl:0", "package-0"), ("intel-rapl:1", "psys")):
        _zone(tmp_path, name, 0)
        (tmp_path / name / "name").write_text(f"{label}\n")
    counter = EnergyCounter(tmp_path)
    for name in ("intel-rapl:0", "intel-rapl:1"):
        _zone(tmp_path, name, 500_000)
    assert counter.joules() == pytest.approx(0.5)


def test_calls_that_are_not_timed_use_energy_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A joule per call, warm-up included: both programs use the same per call, however many they make."""

    class Counting:
        def __init__(self, calls: int) -> None:
            self.calls = calls

        def time_calls(self, inputs: object, batch: int, seconds: float) -> list[float]:
            counted.append(self.calls + WARM_CALLS)
            return [0.0] * self.calls

    class Joules:
        def joules(self) -> float:
            used, counted[:] = float(sum(counted)), []
            return used

    counted: list[int] = []
    monkeypatch.setattr("hasten.measure.energy._SETTLE_SECONDS", 0.0)
    workers: dict[str, Any] = {"original": Counting(5), "candidate": Counting(500)}
    counter: Any = Joules()
    assert compare_energy(counter, workers, "original", [], 1, 2)["candidate"] == pytest.approx(1.0)


def test_the_order_of_the_programs_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.measure.energy.time.sleep", lambda _: None)
    asked: list[str] = []

    class Worker:
        def __init__(self, name: str) -> None:
            self.name = name

        def time_calls(self, *_: Any) -> list[float]:
            asked.append(self.name)
            return [0.1]

    class Counter:
        def joules(self) -> float:
            return 1.0

    workers: Any = {"a": Worker("a"), "b": Worker("b")}
    counter: Any = Counter()
    assert compare_energy(counter, workers, "a", [], 1, 3) == {"a": 1.0, "b": 1.0}
    assert asked == ["a", "b", "b", "a", "a", "b"]
