"""What a target can judge about a compiled program without running it, under one name and unit everywhere.

A target, or its stack, calls `write` when it compiles; `read` gives the numbers of any compiled folder, empty where the
target judges nothing. A search under a constraint ("luts at most 40,000") compares these numbers and nothing else.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from hasten.errors import InvalidInput, unknown

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
    "weight_bytes": "weights as stored for the device",
    "npu_share": "share of the operators that run on the accelerator, 0 to 1",
}
"""Every quantity that a target may state, and what it means."""

_FILE = "judged.json"


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
    found = json.loads(path.read_text())
    if not isinstance(found, dict) or not all(isinstance(v, (int, float)) for v in found.values()):
        raise InvalidInput(f"{path} must hold numbers by name, but holds {str(found)[:100]}.")
    return found
