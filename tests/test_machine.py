"""What a process may use of the machine."""

import os
from pathlib import Path

import pytest

from hasten import machine


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, float("inf")),
        ({"cpu.max": "max 100000"}, float("inf")),
        ({"cpu.max": "250000 100000"}, 2.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, float("inf")),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
    ],
)
def test_the_share_of_time_of_a_container(tmp_path: Path, files: dict[str, str], cores: float) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert machine._quota(tmp_path) == cores


def test_a_container_is_not_given_a_thread_for_every_core_of_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for quota, cores in ((float("inf"), 64), (2.5, 2), (0.5, 1)):
        monkeypatch.setattr(machine, "_quota", lambda quota=quota: quota)
        assert machine.usable_cores() == cores
