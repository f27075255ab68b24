"""What this machine can do at most: matrix arithmetic by precision, memory bandwidth, the cost of a launch.

Measured once with every library at hand, the best of them counts, and kept by the device's fingerprint in the user's
cache folder. The roofline they make is that of Williams, Waterman and Patterson 2009, "Roofline: an insightful visual
performance model for multicore architectures".
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hasten.diagnosis.child import ProbeFailed, ask
from hasten.diagnosis.probes import Shape, write_chain, write_probe
from hasten.machine import cpu_has_bf16, fingerprint, usable_cores
from hasten.recipe import make_target

PRECISIONS = ("fp32", "bf16", "int8")
_SCHEMA = 1
_SIDE = 1024
_CHAIN = 32
# One matrix product and one convolution that libraries are tuned for.
_PROBES = {
    "matrix product": Shape((_SIDE, _SIDE), _SIDE),
    "convolution": Shape((1, 256, 28, 28), 256, (3, 3), (1, 1), (1, 1, 1, 1)),
}
_UNKNOWN_PRIVATE_BYTES, _UNKNOWN_SHARED_BYTES = 2 * 2**20, 32 * 2**20


@dataclass(frozen=True)
class Peak:
    """The most arithmetic in one precision.

    Attributes:
        ops_per_s: Operations per second, a multiply-accumulate being two.
        by: The library and the probe that reached it.
    """

    ops_per_s: float
    by: str


@dataclass(frozen=True)
class Ceilings:
    """The limits of one machine.

    Attributes:
        device: Fingerprint of the machine.
        peaks: By precision; one that the machine lacks is absent.
        cache_bytes_per_s, dram_bytes_per_s: Bandwidth of the last-level cache and of memory, all threads together.
        private_bytes, shared_bytes: Size of all level-2 caches together, and of the last-level cache.
        call_us: By target: a call of a graph of one tiny operator.
        node_us: By target: each further tiny operator.
        seconds: What measuring took.
    """

    device: Mapping[str, Any]
    peaks: Mapping[str, Peak]
    cache_bytes_per_s: float
    dram_bytes_per_s: float
    private_bytes: int
    shared_bytes: int
    call_us: Mapping[str, float]
    node_us: Mapping[str, float]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Ceilings":
        """The ceilings that `to_json` wrote."""
        return cls(**(dict(value) | {"peaks": {name: Peak(**peak) for name, peak in value["peaks"].items()}}))


def ceilings(fresh: bool = False) -> Ceilings:
    """The limits of this machine, from the cache or measured now.

    Args:
        fresh: Measure again even if they are known.
    """
    path = cache_file()
    if not fresh and path.is_file():
        return Ceilings.from_json(json.loads(path.read_text()))
    found = measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(found.to_json(), indent=2))
    scratch.rename(path)
    return found


def cache_file() -> Path:
    """Where the ceilings of this machine, these cores and these library versions are kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = json.dumps([_SCHEMA, fingerprint()], sort_keys=True).encode()
    return cache / "hasten" / "doctor" / f"{hashlib.sha256(key).hexdigest()[:16]}.json"


def measure() -> Ceilings:
    """Measure everything; some ten seconds, during which the machine should be idle."""
    started = time.perf_counter()
    private, shared = cache_sizes()
    torch = ask({"command": "torch", "side": _SIDE, "cache_bytes": shared // 2, "dram_bytes": 8 * shared})
    found = [(p, 2 * _SIDE**3 / s, "PyTorch matrix product") for p, s in torch["product_s"].items()]
    call_us, node_us = {"eager": torch["operator_us"]}, {"eager": torch["operator_us"]}
    with tempfile.TemporaryDirectory() as scratch:
        for runtime in ("onnxruntime", "openvino"):
            if make_target(runtime).missing():
                continue
            found += _runtime_peaks(runtime, Path(scratch))
            call_us[runtime], node_us[runtime] = _launches(runtime, Path(scratch))
    peaks = {}
    for precision in PRECISIONS:
        reached = [(ops, by) for name, ops, by in found if name == precision]
        if reached:
            peaks[precision] = Peak(*max(reached))
    return Ceilings(
        device=fingerprint(),
        peaks=peaks,
        cache_bytes_per_s=max(torch["cache_bytes_per_s"], torch["dram_bytes_per_s"]),
        dram_bytes_per_s=torch["dram_bytes_per_s"],
        private_bytes=private,
        shared_bytes=shared,
        call_us=call_us,
        node_us=node_us,
        seconds=time.perf_counter() - started,
    )


def _runtime_peaks(runtime: str, scratch: Path) -> list[tuple[str, float, str]]:
    """(precision, operations per second, by whom) of every probe in every precision the runtime has."""
    found = []
    for precision in PRECISIONS:
        if precision == "bf16" and (runtime != "openvino" or not cpu_has_bf16()):
            continue
        paths = [scratch / f"{precision}_{index}.onnx" for index in range(len(_PROBES))]
        for shape, path in zip(_PROBES.values(), paths, strict=True):
            write_probe(shape, precision, path)
        try:
            times = ask({"command": "probes", "runtime": runtime, "paths": [*map(str, paths)], "precision": precision})
        except ProbeFailed:
            continue
        for (name, shape), time_us in zip(_PROBES.items(), times, strict=True):
            found.append((precision, 2 * macs_of(shape) / (time_us * 1e-6), f"{runtime} {name}"))
    return found


def _launches(runtime: str, scratch: Path) -> tuple[float, float]:
    """Microseconds of a call of one tiny operator, and of each further one."""
    paths = [scratch / "one.onnx", scratch / "chain.onnx"]
    write_chain(1, paths[0])
    write_chain(_CHAIN, paths[1])
    one, chain = ask({"command": "probes", "runtime": runtime, "paths": [*map(str, paths)], "precision": "fp32"})
    return one, max(0.0, chain - one) / (_CHAIN - 1)


def macs_of(shape: Shape) -> int:
    """Multiply-accumulates of a probe whose convolution keeps the size of its input."""
    rows, depth = 1, shape.data[-1]
    for size in shape.data[:-1]:
        rows *= size
    if shape.kernel:
        rows, depth = 1, shape.data[1] // shape.group
        for size in (*shape.data[2:], *shape.kernel):
            rows *= size
    return rows * depth * shape.width


def cache_sizes() -> tuple[int, int]:
    """Bytes of all level-2 caches of the usable cores together, and of the last-level cache; usual ones if unknown."""
    sizes: dict[int, int] = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if (index / "type").read_text().strip() != "Instruction":
            size = (index / "size").read_text().strip()
            sizes[int((index / "level").read_text())] = int(size.rstrip("KM")) * (
                2**20 if size.endswith("M") else 2**10
            )
    private = sizes[2] * usable_cores() if 2 in sizes else _UNKNOWN_PRIVATE_BYTES
    return private, max(sizes[level] for level in sizes) if max(sizes, default=0) > 2 else _UNKNOWN_SHARED_BYTES
