"""A program that can take several batches at a time: replicas of one artifact, or any callable.

Where the target lets one loaded program be called from several threads, the replicas share it and its memory; other
targets are loaded once per replica. Artifacts whose target holds Python's lock can run in processes instead
(`hasten.engine.process`).
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hasten.artifact import Artifact, load
from hasten.errors import InvalidInput
from hasten.machine import usable_cores
from hasten.manifest import read_arrays
from hasten.recipe import Program, make_target


@dataclass(frozen=True)
class Runner:
    """What the engine needs of a device.

    Attributes:
        name: For people.
        lanes: One callable per batch at a time; they may be the same object.
        inputs: Name, dtype and shape of every input as in an artifact's manifest; empty for any.
        outputs: The same for outputs, without names.
        fixed: The only batch size that the program takes, or None.
        example: One row or more of real inputs for profiling and warm-up; empty: none.
        close: Called once when the engine closes.
    """

    name: str
    lanes: tuple[Program, ...]
    inputs: tuple[dict[str, Any], ...] = ()
    outputs: tuple[dict[str, Any], ...] = ()
    fixed: int | None = None
    example: tuple[np.ndarray, ...] = ()
    close: Callable[[], None] = field(default=lambda: None)

    def __post_init__(self) -> None:
        if not self.lanes:
            raise InvalidInput(f"A runner must have at least one lane, but {self.name!r} has none.")

    def warm_up(self) -> None:
        """One call on every lane, so that the first request does not pay for lazy initialisation."""
        if self.example:
            rows = example_rows(self.example, self.fixed or 1)
            for lane in self.lanes:
                lane(*rows)


def example_rows(example: Sequence[np.ndarray], rows: int) -> list[np.ndarray]:
    """`rows` rows of `example`, repeated when there are fewer."""
    return [np.take(x, np.arange(rows), axis=0, mode="wrap") for x in example]


def open_artifact(
    path: str | os.PathLike[str], *, replicas: int = 0, threads: int = 0, processes: bool = False
) -> Runner:
    """Load an artifact for `replicas` batches at a time.

    Args:
        path: The artifact.
        replicas: Batches at a time; 0: every core, divided by `threads`.
        threads: Threads inside one call, if its target has that option; 0: cores divided by replicas.
        processes: Every replica in a process of its own, with inputs and outputs in shared memory.

    Raises:
        InvalidInput: Not a loadable artifact, or a number below 0.
    """
    for name, value in (("replicas", replicas), ("threads", threads)):
        if value < 0:
            raise InvalidInput(f"`{name}` must be at least 0 (0: decide by the cores), but got {value}.")
    cores = usable_cores()
    replicas = replicas or max(1, cores // (threads or 1))
    threads = threads or max(1, cores // replicas)
    # Replicas that share cores slow each other down when their idle threads spin.
    options = {"threads": threads} | ({"spinning": False} if replicas * threads > 1 else {})
    folder, manifest = Path(path), Artifact(Path(path)).manifest
    lanes, close = _lanes(folder, manifest, options, replicas, processes)
    batches = {x["shape"][0] for x in manifest["inputs"]}
    runner = Runner(
        name=f"{folder.stem} ({manifest['target']['name']}, {replicas} x {threads} threads)",
        lanes=lanes,
        inputs=tuple(manifest["inputs"]),
        outputs=tuple(manifest["outputs"]),
        fixed=next((x for x in batches if x is not None), None),
        example=tuple(read_arrays(folder, "check_input", len(manifest["inputs"]))),
        close=close,
    )
    runner.warm_up()
    return runner


def _lanes(
    folder: Path, manifest: dict[str, Any], options: dict[str, Any], replicas: int, processes: bool
) -> tuple[tuple[Program, ...], Callable[[], None]]:
    """`replicas` programs, and what ends them."""
    if processes:
        from hasten.engine.process import ProcessProgram

        children = [ProcessProgram(folder, options) for _ in range(replicas)]

        def close() -> None:
            for child in children:
                child.close()

        return tuple(children), close
    first = load(folder, options=options)
    rest = [first if _shareable(manifest) else load(folder, options=options) for _ in range(replicas - 1)]
    return (first, *rest), _nothing


def _nothing() -> None:
    return None


def _shareable(manifest: dict[str, Any]) -> bool:
    target = make_target(manifest["target"]["name"], manifest["target"]["options"])
    return bool(getattr(target, "concurrent", False))
