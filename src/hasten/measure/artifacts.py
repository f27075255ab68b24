"""Time finished artifacts beside each other."""

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hasten.artifact import Artifact, load
from hasten.errors import InvalidInput
from hasten.measure.arrays import ArrayWriter
from hasten.measure.latency import Latency, compare
from hasten.measure.worker import Worker
from hasten.recipe import make_target


def time_artifacts(paths: Sequence[Path], *, batch: int = 1, turns: int = 15) -> dict[str, Latency]:
    """Latency of artifacts on the first one's stored check inputs, in turns; ratios are against the first.

    Raises:
        InvalidInput: Not an artifact, or their inputs differ.
    """
    manifests = [Artifact(path).manifest for path in paths]
    specs = [[(x["dtype"], x["shape"]) for x in manifest["inputs"]] for manifest in manifests]
    for path, spec in zip(paths, specs, strict=True):
        load(path)  # every hash is checked before a process runs the folder
        if spec != specs[0]:
            raise InvalidInput(
                f"The artifacts must take the same inputs, but {paths[0]} takes {specs[0]}, {path} {spec}."
            )
    fixed = specs[0][0][1][0]
    if fixed not in (None, batch):
        raise InvalidInput(f"`batch` must be {fixed}, which {paths[0]} was compiled for, but got {batch}.")
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        inputs = [
            ArrayWriter(
                Path(scratch) / f"{i}.bin", np.load(paths[0] / f"check_input_{i}.npy", allow_pickle=False)
            ).close()
            for i in range(len(specs[0]))
        ]
        workers = {
            str(path): stack.enter_context(
                Worker(
                    make_target(manifest["target"]["name"], manifest["target"]["options"]),
                    path.resolve(),
                    Path(scratch) / f"{index}.log",
                )
            )
            for index, (path, manifest) in enumerate(zip(paths, manifests, strict=True))
        }
        return compare(workers, str(paths[0]), inputs, batch=batch, turns=turns)
