"""What every profiler answers: the time of each node that the runtime executed."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CALL = "the call itself"
_LEAST_CALLS = 12
_TURN_SECONDS = 0.15
_SETTLE_SECONDS = 0.02


@dataclass(frozen=True)
class NodeTime:
    """One node as the runtime executed it.

    Attributes:
        name: The runtime's name of it.
        kind: The runtime's operator type.
        origins: Names that lead back to the compiled file's nodes or values, in order; empty if the runtime says none.
        time_us: Time per call.
        precision: "fp32", "bf16" or "int8": the arithmetic of its kernel.
        detail: The kernel's name, where the runtime tells.
        elements: How many it reads and writes, weights among them; 0 if the runtime does not tell.
    """

    name: str
    kind: str
    origins: tuple[str, ...]
    time_us: float
    precision: str = "fp32"
    detail: str = ""
    elements: int = 0


@dataclass(frozen=True)
class Profile:
    """All nodes of one program.

    Attributes:
        nodes: In the order of execution.
        plain_us: Time of an undisturbed whole call without the profiler, in turns with those under it.
        profiled_us: Time of an undisturbed whole call while the profiler was on.
        calls: How many calls were profiled.
        note: What the profiler's own resolution or overhead did to the times, in words.
    """

    nodes: tuple[NodeTime, ...]
    plain_us: float
    profiled_us: float
    calls: int
    note: str

    @property
    def sum_us(self) -> float:
        """Time of all nodes together."""
        return sum(node.time_us for node in self.nodes)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Profile":
        """The profile that `to_json` wrote."""
        nodes = tuple(NodeTime(**(node | {"origins": tuple(node["origins"])})) for node in value["nodes"])
        return cls(nodes, value["plain_us"], value["profiled_us"], value["calls"], value["note"])


def alternate(plain: Callable[[], Any], profiled: Callable[[], Any], seconds: float) -> tuple[float, float, float, int]:
    """Call two forms of one program in turns.

    Returns:
        Microseconds of an undisturbed plain call, of an undisturbed profiled one, the mean of all profiled ones, and
        how many those were.
    """
    plain()
    times: tuple[list[float], list[float]] = ([], [])
    settling: list[float] = []
    end = time.perf_counter() + seconds
    while len(times[1]) < _LEAST_CALLS or time.perf_counter() < end:
        for call, found in zip((plain, profiled), times, strict=True):
            time.sleep(_SETTLE_SECONDS)  # the other form's threads may still be spinning
            settling.append(_timed(call))
            until = time.perf_counter() + _TURN_SECONDS
            least = len(found) + 3
            while len(found) < least or time.perf_counter() < until:
                found.append(_timed(call))
    watched = [*times[1], *settling[1::2]]  # profilers saw these calls too
    return undisturbed(times[0]) * 1e6, undisturbed(times[1]) * 1e6, float(np.mean(watched)) * 1e6, len(watched)


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def undisturbed(times: np.ndarray | list[float]) -> float:
    """Mean of the quickest quarter: other tenants of the machine only ever add time, and not to every call."""
    ordered = np.sort(times)
    return float(ordered[: max(1, len(ordered) // 4)].mean())


def of_undisturbed_calls(times: Mapping[Any, list[float]]) -> dict[Any, float]:
    """The mean time of every node in the quickest quarter of the calls.

    The quickest quarter of each node by itself would be of other calls for every node, and their sum less than any
    call took.

    Args:
        times: By node its times in the order of the calls. A node that ran more or less often than once in each call
            is taken by itself.
    """
    calls = max((len(spent) for spent in times.values()), default=0)
    regular = {node: np.asarray(spent) for node, spent in times.items() if len(spent) == calls}
    if not regular:
        return {}
    chosen = np.argsort(np.sum(list(regular.values()), axis=0))[: max(1, calls // 4)]
    return {
        node: float(regular[node][chosen].mean()) if node in regular else undisturbed(spent)
        for node, spent in times.items()
    }
