"""Judge a shipped artifact again on the task it was made for: `hasten verify ARTIFACT --task TASK`."""

import tempfile
from dataclasses import replace
from pathlib import Path

from hasten.artifact import Artifact, open_target
from hasten.errors import InvalidInput
from hasten.graph.capture import capture
from hasten.measure.certificate import Certificate, certify, holdout_sha256
from hasten.measure.holdout import store_holdout
from hasten.measure.worker import Worker
from hasten.search.bench import Bench
from hasten.task import Task


def seconds_to_recertify(path: Path) -> float | None:
    """About how long `recertify` computes, from the artifact's own measurements; None where it has none."""
    certificate, measured = Artifact(path).certificate, Artifact(path).measurements
    if certificate is None or measured is None or "latency" not in measured:  # what is judged was not timed
        return None
    latency = measured["latency"]
    return float(certificate["n"] * latency["median_ms"] * (1 + latency["ratio"]) / 1e3)


def recertify(path: Path, task: Task) -> Certificate:
    """The certificate of an artifact, made anew from its program and the task's data.

    Raises:
        InvalidInput: The artifact has no certificate, or the task's holdout is not the one it was certified on.
    """
    artifact = Artifact(path)
    stored, (_, target) = artifact.certificate, open_target(path)
    if stored is None:
        raise InvalidInput(f"An artifact must have a certificate to be certified again, but {path} has none.")
    with tempfile.TemporaryDirectory() as scratch:
        trials = Path(scratch) / "trials"
        holdout = store_holdout(task, Path(scratch) / "data", stored["seed"])
        if holdout_sha256(holdout.content_sha256, holdout.certify) != stored["holdout_sha256"]:
            raise InvalidInput(
                f"The task's holdout must be the one that {path} was certified on, but its {len(holdout)} samples are "
                "others, or they are preprocessed in another way."
            )
        with (
            Bench(task, capture(task.model, task.inner.example), holdout, trials) as bench,
            Worker(target, path.resolve(), Path(scratch) / "log.txt") as worker,
        ):
            rows = holdout.certify
            again = certify(
                bench.baseline_certify,
                bench.score(1, worker, rows),
                max_drop=stored["max_drop"],
                confidence=stored["confidence"],
                indices=rows,
                finalists=stored["finalists"],
                share=stored["error"] / (1 - stored["confidence"]),
                target=stored["target"],
                seed=stored["seed"],
                content=holdout.content_sha256,
            )
    # What is certified is so together with the other finalists.
    return replace(again, upper_bound=max(again.upper_bound, stored["upper_bound"]))
