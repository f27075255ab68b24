"""How the pruned share grows over the steps of iterative pruning."""

from typing import Literal

Schedule = Literal["one-shot", "linear", "cubic"]
SCHEDULES = ("one-shot", "linear", "cubic")


def shares(final: float, steps: int, schedule: Schedule) -> list[float]:
    """The share that is pruned after each step, ending at `final`.

    One-shot is a single step. Linear grows evenly. Cubic takes most early, when much is redundant: after step t of n,
    final * (1 - (1 - t / n)^3) (Zhu & Gupta 2017, section 3, equation 1, from sparsity 0).
    """
    if schedule == "one-shot":
        return [final]
    done = [(t + 1) / steps for t in range(steps)]
    return [final * (x if schedule == "linear" else 1 - (1 - x) ** 3) for x in done]
