"""XLA on the CPU: a plan traced and compiled once for every batch size it meets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hasten.graph.plan import Plan


def load(folder: Path, integer: bool = False) -> Callable[..., tuple[np.ndarray, ...]]:
    """The program of the plan in `folder`.

    Args:
        folder: What `hasten.graph.plan.Plan.save` wrote.
        integer: Whether int8 products run on integers.
    """
    import jax

    from hasten.stacks._jax import function_of

    function = jax.jit(function_of(Plan.load(folder), integer))

    def program(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        # Tokens are int64 in torch; without this JAX would cut them to 32 bits.
        with jax.enable_x64(True):
            outputs: Any = function(*inputs)
            return tuple(np.asarray(y) for y in outputs)

    return program
