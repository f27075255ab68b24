"""What every profiler answers: the time of each node that the runtime executed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

LEAST_CALLS = 20


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
    """

    name: str
    kind: str
    origins: tuple[str, ...]
    time_us: float
    precision: str = "fp32"
    detail: str = ""


@dataclass(frozen=True)
class Profile:
    """All nodes of one program.

    Attributes:
        nodes: In the order of execution.
        profiled_us: Median time of a whole call while the profiler was on.
        calls: How many calls were profiled.
        note: What the profiler's own resolution or overhead did to the times, in words.
    """

    nodes: tuple[NodeTime, ...]
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
        return cls(nodes, value["profiled_us"], value["calls"], value["note"])
