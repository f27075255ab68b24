"""What a target can judge about a compiled program without running it, under one name and unit everywhere.

A target, or its stack, calls `write` when it compiles; `read` gives the numbers of any compiled folder, empty where the
target judges nothing. A search under a constraint ("luts at most 40,000") compares these numbers and nothing else.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from hasten.errors import InvalidInput, unknown
from hasten.manifest import read_json

QUANTITIES = {
    "hbm_bytes": "memory of one accelerator chip while the program runs: weights, inputs, outputs, temporaries, code",
    "luts": "lookup tables",
    "flip_flops": "registers",
    "dsps": "multipliers",
    "brams": "memory blocks",
    "clock_mhz": "the clock that the placed and routed design reaches",
    "cycles": "clocks from an input to its result",
    "initiation_interval": "clocks between two inputs",
    "latency_us": "time from an input to its result",
    "samples_per_s": "results per second at that clock",
    "sram_bytes": "on-chip memory in use",
    "activation_bytes": "memory for values between layers",
    "weight_bytes": "weights as stored for the device",
    "npu_share": "share of the operators that run on the accelerator, 0 to 1",
}
"""Every quantity that a target may state, and what it means."""

AT_LEAST = frozenset({"clock_mhz", "samples_per_s", "npu_share"})
"""Of these more is better, so a limit is the least that is accepted; of all others it is the most."""

_FILE = "judged.json"
# Of something that is not used at all, or hardly, there is no end of room.
_MOST_ROOM = 1e6


def write(folder: Path, values: Mapping[str, float]) -> None:
    """State `values` for the program in `folder`; what was stated before under other names stays.

    Raises:
        InvalidInput: A name that is not in `QUANTITIES`.
    """
    for name in values:
        if name not in QUANTITIES:
            raise unknown("judged quantity", name, QUANTITIES)
    (folder / _FILE).write_text(json.dumps({**read(folder), **values}, indent=2))


def read(folder: Path) -> dict[str, float]:
    """What the target of the program in `folder` judged, by name; empty if it judged nothing.

    Raises:
        InvalidInput: The file holds something else.
    """
    path = folder / _FILE
    if not path.exists():
        return {}
    found = read_json(path)
    if not isinstance(found, dict) or not all(isinstance(v, (int, float)) for v in found.values()):
        raise InvalidInput(f"{path} must hold numbers by name, but holds {str(found)[:100]}.")
    return found


def check_limits(limits: Mapping[str, float]) -> None:
    """Refuse limits that no target can judge.

    Raises:
        InvalidInput: A name that is not in `QUANTITIES`, or a value that is no number of at least 0.
    """
    for name, limit in limits.items():
        if name not in QUANTITIES:
            raise unknown("judged quantity in `limits`", name, QUANTITIES)
        if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 <= limit < math.inf:
            raise InvalidInput(f"`limits` must hold numbers of at least 0, but {name} is {limit!r}.")


def within(values: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    """Whether judged `values` are within all `limits`; a limit without a value is not kept."""
    return all(
        name in values and (values[name] >= limit if name in AT_LEAST else values[name] <= limit)
        for name, limit in limits.items()
    )


def room(values: Mapping[str, float], limits: Mapping[str, float]) -> float:
    """How many times the tightest limit exceeds what is used of it: at least 1 within all limits, 2 where half is used.

    No speed: it orders programs for one device, and says nothing about another.
    """
    return min((_room(values[name], limit, name in AT_LEAST) for name, limit in limits.items()), default=1.0)


def describe(values: Mapping[str, float], limits: Mapping[str, float]) -> str:
    """Values beside their limits, such as "luts 3,900 of at most 40,000"."""
    words = [
        f"{name} {number(values[name])} of at {'least' if name in AT_LEAST else 'most'} {number(limit)}"
        for name, limit in limits.items()
        if name in values
    ]
    return ", ".join(words)


def _room(value: float, limit: float, at_least: bool) -> float:
    wanted, given = (limit, value) if at_least else (value, limit)
    if wanted <= 0:
        return _MOST_ROOM
    return min(given / wanted, _MOST_ROOM)


def number(value: float) -> str:
    """A judged value as people read it: 1,162,240 or 0.75."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.4g}"
