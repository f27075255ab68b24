"""How much a run spends."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """How much to spend.

    Attributes:
        turns: Rounds of the timer.
        test_rows: Rows to judge by, at most.
        largest_batch: Of the throughput sweep.
        minutes: What a tool may spend on searching or training.
        limit_s: When a tool's process is ended.
        network_s: What all tools together may take on one network; who comes later keeps a row that says so.
    """

    turns: int = 15
    test_rows: int = 2000
    largest_batch: int = 64
    minutes: float = 10.0
    limit_s: float = 1800.0
    network_s: float = float("inf")


QUICK = Settings(turns=7, test_rows=600, largest_batch=16, minutes=0.5, limit_s=120.0, network_s=270.0)
