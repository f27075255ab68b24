"""Energy per call from the processor's own counters (RAPL), against a baseline, in turns.

The counter covers whole packages, other processes included, so that only an otherwise idle machine gives good figures.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hasten.errors import InvalidInput
from hasten.measure.arrays import ArrayFile
from hasten.measure.worker import WARM_CALLS, Worker

_POWERCAP = Path("/sys/class/powercap")
_TURN_SECONDS = 0.5  # counters move about once per millisecond
_SETTLE_SECONDS = 0.05


class EnergyCounter:
    """The sum of the energy counters of all processor packages.

    Raises:
        InvalidInput: This machine has none that may be read.
    """

    def __init__(self, root: Path = _POWERCAP) -> None:
        self._zones = [zone for zone in sorted(root.glob("*rapl:*")) if _is_package(zone)]
        if reason := self._unreadable(root):
            raise InvalidInput(
                f"`objective` must be measurable on this machine, but energy is not: {reason}. "
                "Choose latency, throughput or size."
            )
        self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in self._zones]
        self._last = self._read()

    def _unreadable(self, root: Path) -> str:
        if not self._zones:
            return f"{root} has no RAPL counter"
        try:
            self._read()
        except OSError as error:
            return f"{error.filename}: {error.strerror}; make it readable, or run as root"
        return ""

    def joules(self) -> float:
        """Since the last call, or since the counter was made; each counter may have wrapped around once."""
        now = self._read()
        used = [b - a if b >= a else b - a + size for a, b, size in zip(self._last, now, self._ranges, strict=True)]
        self._last = now
        return sum(used) / 1e6

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]


def _is_package(zone: Path) -> bool:
    """Neither a part of a package nor `psys`, which counts the packages once more with all around them."""
    name = zone / "name"
    return zone.name.count(":") == 1 and (not name.is_file() or name.read_text().startswith("package"))


def compare_energy(
    counter: EnergyCounter,
    workers: Mapping[str, Worker],
    baseline: str,
    inputs: Sequence[ArrayFile],
    batch: int,
    turns: int,
) -> dict[str, float]:
    """Energy per call of the baseline over that of every worker, the median over turns; above 1 uses less."""
    used: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(turns):
        for name in list(workers)[:: 1 if turn % 2 == 0 else -1]:
            time.sleep(_SETTLE_SECONDS)
            counter.joules()
            calls = len(workers[name].time_calls(inputs, batch, _TURN_SECONDS)) + WARM_CALLS
            used[name].append(counter.joules() / calls)
    own = np.array(used[baseline])
    return {name: float(np.median(own / np.array(values))) for name, values in used.items()}
