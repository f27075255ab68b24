"""Time finished artifacts beside each other."""

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hasten.artifact import open_target
from hasten.errors import InvalidInput
from hasten.manifest import read_arrays
from hasten.measure.arrays import ArrayWriter
from hasten.measure.latency import SECONDS_PER_TURN, Latency, compare
from hasten.measure.worker import Worker
from hasten.recipe import name_of


def seconds_to_time(artifacts: int, turns: int) -> float:
    """About how long `time_artifacts` takes: half a second to load and warm up each, then the turns."""
    return artifacts * (0.5 + turns * SECONDS_PER_TURN)


def time_artifacts(paths: Sequence[Path], *, batch: int = 1, turns: int = 15) -> dict[str, Latency]:
    """Latency of artifacts on the first one's stored check inputs, in turns; ratios are against the first.

    Raises:
        InvalidInput: Not an artifact, their inputs differ, or their target runs here for its numbers alone.
    """
    if turns < 1 or batch < 1:
        raise InvalidInput(f"`turns` and `batch` must be at least 1, but got {turns} and {batch}.")
    opened = [open_target(path) for path in paths]
    for path, (_, target) in zip(paths, opened, strict=True):
        if target.evidence != "timed":
            raise InvalidInput(
                f"What is timed must run on the device it was compiled for, but {path} is for {name_of(target)}, whose "
                f"program runs here for its numbers alone ({target.evidence}). Its judged.json has what it takes there."
            )
    specs = [[(x["dtype"], x["shape"]) for x in manifest["inputs"]] for manifest, _ in opened]
    for path, spec in zip(paths, specs, strict=True):
        if spec != specs[0]:
            raise InvalidInput(
                f"The artifacts must take the same inputs, but {paths[0]} takes {specs[0]}, {path} {spec}."
            )
    fixed = specs[0][0][1][0]
    if fixed not in (None, batch):
        raise InvalidInput(f"`batch` must be {fixed}, which {paths[0]} was compiled for, but got {batch}.")
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        inputs = [
            ArrayWriter(Path(scratch) / f"{index}.bin", array).close()
            for index, array in enumerate(read_arrays(paths[0], "check_input", len(specs[0])))
        ]
        workers = {
            str(path): stack.enter_context(Worker(target, path.resolve(), Path(scratch) / f"{index}.log"))
            for index, (path, (_, target)) in enumerate(zip(paths, opened, strict=True))
        }
        return compare(workers, str(paths[0]), inputs, batch=batch, turns=turns)
