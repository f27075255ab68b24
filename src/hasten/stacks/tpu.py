"""The TPU compiler (libtpu) ahead of time, on a machine without a TPU: an executable and what it will need."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# libtpu asks the cloud's metadata server and locks the (absent) device unless told not to; read when JAX is imported.
os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hasten import judged
from hasten.errors import Unsupported
from hasten.graph.plan import Plan
from hasten.stacks._jax import function_of
from hasten.stacks._statements import memory_needed, products

TOPOLOGIES = {"v4": "2x2x1", "v5e": "2x2", "v5p": "2x2x1", "v6e": "2x2"}
"""The smallest slice of every generation that libtpu describes; four chips."""


def compile(folder: Path, chip: str, batch: int, chips: int, precision: str) -> dict[str, Any]:
    """Compile the plan in `folder` for a TPU; writes `executable.bin` and `report.json` beside it.

    Args:
        folder: Holds the plan.
        chip: A key of `TOPOLOGIES`.
        batch: Samples per call, over all chips.
        chips: Chips that share the batch; weights are copied to each.
        precision: See `hasten.stacks._jax.function_of`.

    Returns:
        The report.

    Raises:
        Unsupported: The program does not fit into the chip's memory, or an operator cannot be lowered.
    """
    from jax.experimental.serialize_executable import serialize

    plan = Plan.load(folder)
    topology = topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:{TOPOLOGIES[chip]}")
    sharding = NamedSharding(Mesh(np.array(topology.devices[:chips]), ("batch",)), PartitionSpec("batch"))
    with jax.enable_x64(True):
        shapes = [
            jax.ShapeDtypeStruct(tuple(s or batch for s in x.shape), np.dtype(x.dtype), sharding=sharding)
            for x in plan.inputs
        ]
        lowered = jax.jit(function_of(plan, integer=True, precision=precision), out_shardings=sharding).lower(*shapes)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            needed = memory_needed(str(error))
            raise Unsupported(f"The program must fit into the memory of {chip}, but: {needed}") from error
    executable, _, _ = serialize(compiled)
    (folder / "executable.bin").write_bytes(executable)
    found = _report(compiled) | {"chip": chip, "chips": chips, "batch": batch, "evidence": "estimated"}
    (folder / "report.json").write_text(json.dumps(found, indent=2))
    judged.write(folder, {"hbm_bytes": found["hbm_bytes"]})
    return found


def load(folder: Path, precision: str) -> Callable[..., tuple[np.ndarray, ...]]:
    """The same program on the CPU: XLA compiles the same operators with the same integer and bf16 products."""
    function = jax.jit(function_of(Plan.load(folder), integer=True, precision=precision))

    def program(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        with jax.enable_x64(True):
            return tuple(np.asarray(y) for y in function(*inputs))

    return program


def _report(compiled: Any) -> dict[str, Any]:
    """What the compiler states per chip: memory, work, and the types it multiplies in."""
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    cost = cost[0] if isinstance(cost, (list, tuple)) else cost
    return {
        "hbm_bytes": sum(
            getattr(memory, f"{kind}_size_in_bytes") for kind in ("argument", "output", "temp", "generated_code")
        ),
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "flops": cost.get("flops", 0.0),
        "bytes_accessed": cost.get("bytes accessed", 0.0),
        "products": products(text.splitlines()),
    }
