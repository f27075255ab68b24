"""A program that can take several batches at a time: replicas of one artifact, or any callable.

Where the target lets one loaded program be called from several threads, the replicas share it and its memory; other
targets are loaded once per replica. Artifacts whose target holds Python's lock can run in processes instead
(`hasten.engine.process`).
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from hasten.artifact import Artifact, load
from hasten.errors import HastenError, InvalidInput
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
        respawn: Makes the program of a lane anew after it died, by the lane's number; None: it cannot.
        kill: Ends the program of a lane that does not come back, by the lane's number; its call raises then. None: it
            cannot.
        cores: For every lane the cores that its thread is pinned to; empty: not pinned, or pinned otherwise.
    """

    name: str
    lanes: tuple[Program, ...]
    inputs: tuple[dict[str, Any], ...] = ()
    outputs: tuple[dict[str, Any], ...] = ()
    fixed: int | None = None
    example: tuple[np.ndarray, ...] = ()
    close: Callable[[], None] = field(default=lambda: None)
    respawn: Callable[[int], Program] | None = None
    kill: Callable[[int], None] | None = None
    cores: tuple[frozenset[int], ...] = ()

    def __post_init__(self) -> None:
        if not self.lanes:
            raise InvalidInput(f"A runner must have at least one lane, but {self.name!r} has none.")

    def pin(self, lane: int) -> None:
        """Pin the calling thread, which runs a lane's program, to the lane's cores."""
        if self.cores:
            os.sched_setaffinity(0, self.cores[lane])

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
    path: str | os.PathLike[str],
    *,
    replicas: int = 0,
    threads: int = 0,
    processes: bool = False,
    pinned: bool = False,
) -> Runner:
    """Load an artifact for `replicas` batches at a time.

    Args:
        path: The artifact.
        replicas: Batches at a time; 0: every core, divided by `threads`.
        threads: Threads inside one call, if its target has that option; 0: cores divided by replicas, or the fewer
            that the artifact was made to run with.
        processes: Every replica in a process of its own, with inputs and outputs in shared memory; one that dies is
            started again.
        pinned: Every replica keeps to cores of its own. In this process that needs replicas of one thread, whose work
            runs in the calling thread; elsewhere, and where the system cannot pin, it changes nothing.

    Raises:
        InvalidInput: Not a loadable artifact, or a number below 0.
    """
    for name, value in (("replicas", replicas), ("threads", threads)):
        if value < 0:
            raise InvalidInput(f"`{name}` must be at least 0 (0: decide by the cores), but got {value}.")
    cores = usable_cores()
    replicas = replicas or max(1, cores // (threads or 1))
    folder, manifest = Path(path), Artifact(Path(path)).manifest
    own = manifest["target"]["options"].get("threads") or cores
    threads = threads or min(own, max(1, cores // replicas))
    # Replicas that share cores slow each other down when their idle threads spin.
    options = {"threads": threads} | ({"spinning": False} if replicas * threads > 1 else {})
    pins = divide_cores(replicas, threads) if pinned else ()
    lanes = _Processes(folder, options, replicas, pins) if processes else _threads(folder, manifest, options, replicas)
    batches = {x["shape"][0] for x in manifest["inputs"]}
    runner = Runner(
        name=f"{folder.stem} ({manifest['target']['name']}, {replicas} x {threads} threads{', pinned' * bool(pins)})",
        lanes=tuple(lanes),
        inputs=tuple(manifest["inputs"]),
        outputs=tuple(manifest["outputs"]),
        fixed=next((x for x in batches if x is not None), None),
        example=tuple(read_arrays(folder, "check_input", len(manifest["inputs"]))),
        close=lanes.close if isinstance(lanes, _Processes) else _nothing,
        respawn=lanes.respawn if isinstance(lanes, _Processes) else None,
        kill=lanes.kill if isinstance(lanes, _Processes) else None,
        cores=pins if threads == 1 and not processes else (),
    )
    try:
        runner.warm_up()
    except BaseException:
        runner.close()
        raise
    return runner


def check_alike(runners: Sequence[Runner]) -> None:
    """Refuse devices that take or give other arrays than the first; one that does not say is taken as it is.

    Raises:
        InvalidInput: Names two that differ.
    """
    for kind in ("inputs", "outputs"):
        specs = [(r.name, [(x["dtype"], x["shape"][1:]) for x in getattr(r, kind)]) for r in runners]
        specs = [(name, spec) for name, spec in specs if spec]
        for name, spec in specs:
            if spec != specs[0][1]:
                raise InvalidInput(
                    f"The devices of an engine must have the same {kind}, but {specs[0][0]} has {specs[0][1]} and "
                    f"{name} has {spec}."
                )


def divide_cores(replicas: int, threads: int) -> tuple[frozenset[int], ...]:
    """Cores for every replica, `threads` each, taken in turns; empty where the system cannot pin."""
    if not hasattr(os, "sched_setaffinity"):
        return ()
    cores = sorted(os.sched_getaffinity(0))
    return tuple(frozenset(cores[(i * threads + j) % len(cores)] for j in range(threads)) for i in range(replicas))


def _threads(folder: Path, manifest: dict[str, Any], options: dict[str, Any], replicas: int) -> list[Program]:
    """`replicas` programs in this process: one shared by all where its target allows that."""
    first = load(folder, options=options)
    return [first, *(first if _shareable(manifest) else load(folder, options=options) for _ in range(replicas - 1))]


class _Processes(list[Program]):
    """Programs in processes of their own, which can be started again."""

    def __init__(self, folder: Path, options: dict[str, Any], replicas: int, pins: tuple[frozenset[int], ...]) -> None:
        super().__init__()
        self._folder, self._options, self._pins, self._closed = folder, options, pins, False
        try:
            for number in range(replicas):
                self.append(self._start(number))
        except BaseException:
            self.close()
            raise

    def _start(self, number: int) -> Program:
        from hasten.engine.process import ProcessProgram

        return ProcessProgram(self._folder, self._options, self._pins[number] if self._pins else frozenset())

    def respawn(self, number: int) -> Program:
        """End what is left of a replica and start it again."""
        if self._closed:
            raise HastenError("The engine is closed.")
        cast(Any, self[number]).close()
        self[number] = self._start(number)
        if self._closed:  # meanwhile
            cast(Any, self[number]).close()
        return self[number]

    def kill(self, number: int) -> None:
        """End a replica at once."""
        cast(Any, self[number]).kill()

    def close(self) -> None:
        """End every process."""
        self._closed = True
        for program in self:
            cast(Any, program).close()


def _nothing() -> None:
    return None


def _shareable(manifest: dict[str, Any]) -> bool:
    target = make_target(manifest["target"]["name"], manifest["target"]["options"])
    return bool(getattr(target, "concurrent", False))
