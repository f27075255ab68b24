"""`hasten.doctor`: time a model layer by layer in every runtime, hold it against the machine, say what would help."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hasten.artifact import Artifact
from hasten.diagnosis import work, work_openvino
from hasten.diagnosis.advice import advise
from hasten.diagnosis.ceilings import Ceilings, ceilings
from hasten.diagnosis.child import has_profiler, profile
from hasten.diagnosis.findings import Diagnosis, Measured, Patient
from hasten.diagnosis.labels import modules, named
from hasten.diagnosis.roofline import Observation, ceiling_us, floor_of, raised
from hasten.diagnosis.rows import rows_of
from hasten.diagnosis.versions import BASELINE, Maker, Version, batch_of, of_artifact, single_threaded
from hasten.diagnosis.widths import fast_width, staircase
from hasten.errors import HastenError, Unsupported
from hasten.measure.arrays import ArrayWriter
from hasten.measure.latency import Latency, compare
from hasten.measure.worker import Worker
from hasten.recipe import make_target, name_of

if TYPE_CHECKING:
    from hasten.task import Task

_TURNS = 7
_FEWER_THREADS_PAY = 1.03


def doctor(
    subject: "Task | Artifact | str | os.PathLike[str]",
    *,
    fresh: bool = False,
    seconds: float = 1.5,
    say: Callable[[str], None] = lambda line: None,
) -> Diagnosis:
    """Diagnose a task's model, or an artifact, on this machine at batch 1.

    Args:
        subject: A task; or an artifact, or its folder.
        fresh: Measure the machine's ceilings again even if they are known.
        seconds: How long each program is profiled.
        say: Receives what is being done.

    Raises:
        InvalidInput: The task breaks a rule, or the folder is no artifact.
        Unsupported: The artifact's target has no profiler to read.
    """
    say("measuring this machine")
    limits = ceilings(fresh)
    with tempfile.TemporaryDirectory(prefix="hasten-doctor-") as scratch:
        if isinstance(subject, (str, os.PathLike)):
            subject = Artifact(Path(subject))
        if isinstance(subject, Artifact):
            patient = _open_artifact(subject, Path(scratch), say)
        else:
            patient = _open_task(subject, Path(scratch), say)
        return _examine(patient, limits, Path(scratch), seconds, say)


def _open_task(task: "Task", scratch: Path, say: Callable[[str], None]) -> Patient:
    from hasten.graph.capture import capture, has_dynamic_batch

    say("capturing the model")
    task = task.inner
    graph = capture(task.model, task.example)
    inputs = batch_of(task.example, not has_dynamic_batch(graph))
    one = replace(task, calibration=[task.example])
    maker = Maker(graph, one, scratch)
    say("compiling")
    versions = maker.as_it_is()
    say("compiling dry runs in int8")
    versions += maker.quantized()
    return Patient(task.name, versions, inputs, maker, modules(graph))


def _open_artifact(artifact: Artifact, scratch: Path, say: Callable[[str], None]) -> Patient:
    from hasten.artifact import verify

    verify(artifact.path)
    manifest = artifact.manifest
    target = make_target(manifest["target"]["name"], manifest["target"]["options"])
    if not has_profiler(target):
        raise Unsupported(
            f"The artifact must run in a runtime whose nodes can be timed, but {name_of(target)} tells nothing of "
            "them. Run the doctor on the task instead: `hasten doctor TASK`."
        )
    if name_of(target) == BASELINE:
        return _open_task(_as_task(artifact), scratch, say)
    paths = [artifact.path / f"check_input_{index}.npy" for index in range(len(manifest["inputs"]))]
    fixed = manifest["inputs"][0]["shape"][0]
    inputs = [np.ascontiguousarray(np.load(path, allow_pickle=False)[: fixed or 1]) for path in paths]
    say("converting to other runtimes")
    precision = getattr(target, "precision", "fp32")
    if _holds_integers(artifact.path, inputs):
        precision = "int8"
    return Patient(artifact.path.name, of_artifact(target, artifact.path, precision, scratch), inputs, None)


def _as_task(artifact: Artifact) -> "Task":
    """An eager artifact is a captured graph, so that everything can be tried on it that can be on a model."""
    import torch

    from hasten.graph.storage import load_graph
    from hasten.task import Task

    count = len(artifact.manifest["inputs"])
    example = tuple(torch.from_numpy(np.load(artifact.path / f"check_input_{i}.npy")) for i in range(count))
    return Task(load_graph(artifact.path), example, holdout=[(example, None)], name=artifact.path.name)


def _holds_integers(folder: Path, inputs: list[np.ndarray]) -> bool:
    found = _work(folder, inputs)
    return found is not None and "QuantizeLinear" in found.kinds.values()


def _work(folder: Path, inputs: list[np.ndarray]) -> work.Work | None:
    """What the compiled files have to do, if they can be read."""
    if (folder / "model.onnx").is_file():
        return work.read_work(folder / "model.onnx", inputs)
    if (folder / "model.xml").is_file():
        return work_openvino.read_work(folder / "model.xml", inputs)
    return None


@dataclass(frozen=True)
class _Race:
    """The programs of a patient timed in turns.

    Attributes:
        versions: Those that could be made, the subject as it is first.
        more: Those that depend on which of them is the quickest: with one thread, and pruned.
        latencies: By version name; ratios are to the first version.
        oversubscribed: Whether the quickest is faster with one thread.
    """

    versions: list[Version]
    more: list[Version]
    latencies: dict[str, Latency]
    oversubscribed: bool


def _race(patient: Patient, scratch: Path, say: Callable[[str], None]) -> _Race:
    """Time every program of `patient`, and what can be made of the quickest; `scratch` must be empty."""
    good = [version for version in patient.versions if not version.failure]
    files = [ArrayWriter(scratch / f"input_{i}.bin", x).close() for i, x in enumerate(patient.inputs)]
    batch = len(patient.inputs[0])
    with contextlib.ExitStack() as stack:
        say("timing the programs in turns")
        workers = _start(good, scratch, stack)
        now = next(iter(workers))
        latencies = compare(workers, now, files, batch=batch, turns=_TURNS)
        quickest = max((v for v in good if v.name in latencies), key=lambda v: latencies[v.name].ratio)
        more = _more(patient, quickest, say)
        say("timing them against the quickest")
        added = {name: workers[name] for name in (now, quickest.name)} | _start(more, scratch, stack)
        again = compare(added, now, files, batch=batch, turns=_TURNS)
    latencies |= {version.name: again[version.name] for version in more if version.name in again}
    oversubscribed = any(
        again[v.name].ratio > _FEWER_THREADS_PAY * again[quickest.name].ratio
        for v in more
        if v.kind == "threads" and v.name in again
    )
    return _Race(good, more, latencies, oversubscribed)


def _start(versions: Sequence[Version], scratch: Path, stack: contextlib.ExitStack) -> dict[str, Worker]:
    """A worker for every version that loads, two starting at a time."""

    def start(version: Version) -> Worker | None:
        with contextlib.suppress(HastenError):
            return Worker(version.target, version.folder, scratch / "log.txt")
        return None

    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(start, versions))
    return {v.name: stack.enter_context(worker) for v, worker in zip(versions, made, strict=True) if worker}


def _examine(
    patient: Patient, limits: Ceilings, scratch: Path, seconds: float, say: Callable[[str], None]
) -> Diagnosis:
    (scratch / "race").mkdir()
    ran = _race(patient, scratch / "race", say)
    good, more, latencies = ran.versions, ran.more, ran.latencies
    reference = named(_reference(good, patient.inputs), patient.modules)
    measured: list[Measured] = []
    unprofiled: dict[str, str] = {}
    for version in [*good, *(v for v in more if v.kind != "threads")]:
        if version.name in latencies:
            say(f"profiling {version.name}")
            try:
                measured.append(_profile(version, latencies[version.name], patient, reference, seconds))
            except HastenError as error:
                unprofiled[version.name] = str(error)
    if not measured:
        raise Unsupported(f"No program of this model could be profiled: {unprofiled}")
    limits, beaten = raised(limits, _seen(measured, reference, min(limits.call_us.values())))
    say("timing slow layers at neighbouring widths")
    diagnosis = Diagnosis(
        subject=patient.name,
        inputs=[list(x.shape) for x in patient.inputs],
        limits=limits,
        beaten=beaten,
        layers=reference.layers,
        all_weights=reference.weights,
        measured=measured,
        latencies=latencies,
        versions=[*patient.versions, *more],
        ceilings_us={p: ceiling_us(reference.layers, p, limits, reference.weights) for p in limits.peaks},
        fast_widths=_widths(measured, limits, reference.weights),
        oversubscribed=ran.oversubscribed,
        unprofiled=unprofiled,
    )
    return replace(diagnosis, advice=advise(diagnosis.versions, latencies))


def _seen(measured: list[Measured], reference: work.Work, call_us: float) -> Iterator[Observation]:
    """What was reached: by every node, and by every whole network of full width."""
    for m in measured:
        for row in m.rows:
            yield row.layers, row.precision, row.time_us, m.version.name, m.all_weights
        if m.version.kind != "prune":  # the reference's layers are not its own
            yield tuple(reference.layers), m.version.precision, m.whole_us - call_us, m.version.name, m.all_weights


def _more(patient: Patient, quickest: Version, say: Callable[[str], None]) -> list[Version]:
    """Versions that depend on which one is the quickest: with one thread, and pruned."""
    more = [single_threaded(quickest)]
    if patient.maker is not None:
        say("compiling a dry run at half width")
        more.append(patient.maker.pruned(quickest))
    return [version for version in more if not version.failure]


def _reference(versions: Sequence[Version], inputs: list[np.ndarray]) -> work.Work:
    """The layers of the model as its float file, or the artifact, has them."""
    for version in versions:
        found = _work(version.folder, inputs)
        if found is not None:
            return found
    raise Unsupported("The layers can be read from an ONNX or OpenVINO file, but no such version could be compiled.")


def _profile(version: Version, latency: Latency, patient: Patient, reference: work.Work, seconds: float) -> Measured:
    found = profile(version.target, version.folder, patient.inputs, seconds)
    own = _work(version.folder, patient.inputs) or reference
    return Measured(version, latency, found, tuple(rows_of(found, own, reference.layers)), own.weights)


def _widths(measured: list[Measured], limits: Ceilings, all_weights: int) -> dict[str, dict[str, int]]:
    """By version name and layer label the neighbouring width that is faster, for the quickest version of full width."""
    whole = [m for m in measured if m.version.kind != "prune" and name_of(m.version.target) != "eager"]
    if not whole:
        return {}
    best = min(whole, key=lambda m: m.latency.median_ms)
    precision = best.version.precision
    lost = [
        (row.time_us - floor_of(row.layers[0], row.precision, limits, all_weights).us, row.layers[0])
        for row in best.rows
        if len(row.layers) == 1
    ]
    slowest = [layer for _, layer in sorted(lost, key=lambda pair: -pair[0])]
    steps = staircase(slowest, name_of(best.version.target), precision)
    found = {}
    for layer in slowest:
        if layer.label in steps and layer.probe:
            other = fast_width(layer.probe.width, steps[layer.label])
            if other is not None:
                found[layer.label] = other
    return {best.version.name: found}
