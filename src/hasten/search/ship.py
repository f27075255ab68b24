"""Pack a trial's program as an artifact: the certified best at the end, the best so far while the search runs."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hasten import artifact
from hasten.artifact import Artifact
from hasten.compiling import input_specs
from hasten.machine import fingerprint
from hasten.search.bench import Bench
from hasten.search.trial import Trial

_CHECK_ROWS = 4


def ship(
    bench: Bench,
    trial: Trial,
    out: Path,
    *,
    certificate: Mapping[str, Any] | None,
    measurements: Mapping[str, Any],
) -> Artifact:
    """Write a trial's compiled program to `out` with rows of the search part as its check."""
    rows = np.resize(bench.holdout.search, bench.sizes.fixed or _CHECK_ROWS)
    with bench.worker(trial.number, trial.recipe) as worker:
        scratch = bench.folder(trial.number).parent / "check"
        outputs = worker.infer(bench.holdout.inputs, rows, scratch, len(rows))
        answers = [np.array(x.open()) for x in outputs]
    shutil.rmtree(scratch, ignore_errors=True)
    arrays = [x.open()[rows] for x in bench.holdout.inputs]
    about: dict[str, Any] = {
        "device": fingerprint(),
        "size_bytes": trial.size_bytes,
        "peak_memory_bytes": trial.peak_memory_bytes,
    }
    return artifact.write(
        out,
        bench.folder(trial.number),
        trial.recipe,
        input_specs(bench.input_names, arrays, bench.sizes.fixed),
        arrays,
        answers,
        certificate=certificate,
        measurements=about | dict(measurements),
    )


def keep_best_so_far(bench: Bench, folder: Path, trial: Trial) -> None:
    """Write `candidate-NNNN.hasten`, then remove the one before it.

    It passed on the search part only, so it has no certificate: `hasten verify` and every loader can tell.
    """
    out = folder / f"candidate-{trial.number:04d}.hasten"
    if not out.exists():
        found: dict[str, Any] = {"search_part": {"score": trial.score, "drop": trial.drop}}
        if trial.latency is not None:
            found["latency"] = trial.latency.to_json()
        else:
            found |= {"judged": trial.judged, "evidence": trial.recipe.target.evidence}
        ship(bench, trial, out, certificate=None, measurements=found)
    remove_candidates(folder, out)


def remove_candidates(folder: Path, but: Path | None = None) -> None:
    """Remove every best-so-far artifact but one."""
    for path in folder.glob("candidate-*.hasten"):
        if path != but:
            shutil.rmtree(path)
