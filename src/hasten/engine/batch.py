"""Batch inference over a large input: streaming, in constant memory, resumable by shards, written atomically."""

import contextlib
import functools
import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from hasten.alone import LOCK, take
from hasten.artifact import Artifact
from hasten.engine.engine import Engine
from hasten.engine.images import ImageReader
from hasten.engine.pipeline import Pipeline, Stage
from hasten.engine.sources import Chunk, Shard, files_of, open_source
from hasten.errors import InvalidInput
from hasten.machine import usable_cores

_JOB = "job.json"


@dataclass(frozen=True)
class BatchReport:
    """What a batch job did.

    Attributes:
        rows: Rows answered in this run.
        shards, skipped: Shards written in this run, and found done already.
        seconds: Wall time of the run.
        use: Utilisation of every stage, between 0 and 1.
        bottleneck: The busiest stage.
    """

    rows: int
    shards: int
    skipped: int
    seconds: float
    use: dict[str, float]
    bottleneck: str


def run_batch(
    artifact: Path,
    source: Path,
    output: Path,
    *,
    shard_rows: int = 4096,
    column: str | None = None,
    size: int | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    crop: float = 1.0,
    decoder: str = "pillow",
    decode_threads: int = 0,
    parquet: bool = False,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    **engine: Any,
) -> BatchReport:
    """Run an artifact of one input over everything in `source`.

    `output` becomes a folder with one `part-00000.npz` (or .parquet) per shard: `key` [n] and `output_0` [n, ...], ...
    A part appears complete or not at all; a job that was stopped skips the parts that are there.

    Args:
        artifact, source, output: Folder, see `open_source`, and a folder: new, empty, or left by the same job.
        shard_rows, column, size, mean, std, crop, decoder: See `open_source` and `ImageReader`.
        decode_threads: Threads that decode; 0: one per core.
        parquet: Write Parquet, one column per output, instead of .npz.
        progress: Told the rows done and all rows (None: not known).
        engine: Options of `Engine`.

    Raises:
        InvalidInput: The input or an option breaks a rule, or `output` holds something else.
    """
    job = Job(artifact, source, output, shard_rows, column, size, mean, std, crop, decoder, decode_threads, parquet)
    job.check()
    with held(output):
        todo = job.begin()
        start = time.perf_counter()
        with ShardRunner(job, **engine) as runner:
            total, rows = _total([runner.shards[index] for index in todo]), 0
            for _, count in runner.run(todo):
                rows += count
                progress(rows, total)
            use = runner.use()
    seconds = time.perf_counter() - start
    skipped = len(runner.shards) - len(todo)
    return BatchReport(rows, len(todo), skipped, seconds, use, max(use, key=lambda name: use[name]))


@dataclass(frozen=True)
class Job:
    """What a batch job reads, does and writes, in plain values that another machine can be told.

    Attributes:
        artifact, source, output, shard_rows, column, size, mean, std, crop, decoder, decode_threads, parquet: See
            `run_batch`.
    """

    artifact: Path
    source: Path
    output: Path
    shard_rows: int = 4096
    column: str | None = None
    size: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    crop: float = 1.0
    decoder: str = "pillow"
    decode_threads: int = 0
    parquet: bool = False

    @functools.cached_property
    def shards(self) -> list[Shard]:
        """The parts of the input; the same wherever they are listed."""
        return open_source(self.source, shard_rows=self.shard_rows, column=self.column)

    @property
    def reading(self) -> dict[str, Any]:
        """Options of `ImageReader`."""
        return {"mean": self.mean, "std": self.std, "crop": self.crop, "decoder": self.decoder}

    def part(self, index: int) -> Path:
        """The output file of a shard."""
        return self.output / f"part-{index:05}.{'parquet' if self.parquet else 'npz'}"

    def check(self) -> None:
        """Refuse what cannot be read or run, before anything is written.

        Raises:
            InvalidInput: Says which rule is broken.
        """
        _only_input(self.artifact)
        _ = self.shards

    def begin(self) -> list[int]:
        """Make the output folder or take it up again; returns the numbers of the shards that are still to do."""
        _claim(self.output, self._described())
        return [index for index in range(len(self.shards)) if not self.part(index).exists()]

    def _described(self) -> dict[str, Any]:
        """What decides the output, as JSON gives it back."""
        job = {
            "artifact_sha256": hashlib.sha256((self.artifact / "manifest.json").read_bytes()).hexdigest(),
            "files": files_of(self.source),
            "shards": [shard.name for shard in self.shards],
            "rows": [shard.rows for shard in self.shards],
            "column": self.column,
            "decode": {"size": self.size, **self.reading},
            "parquet": self.parquet,
        }
        plain: dict[str, Any] = json.loads(json.dumps(job))
        return plain


class ShardRunner:
    """Decoders and an engine that turn shards of a job into parts; a context manager.

    Args:
        job: The job.
        engine: Options of `Engine`.
    """

    def __init__(self, job: Job, **engine: Any) -> None:
        self.job, self.shards = job, job.shards
        decode = _Decode(_only_input(job.artifact), job.size, **job.reading)
        self._pipeline = Pipeline([Stage("decode", decode, threads=job.decode_threads or usable_cores())])
        self._engine = Engine(job.artifact, **engine)

    def run(self, indices: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Write the parts of shards; yields (number, rows) of each when it is complete on disk."""
        write = _write_parquet if self.job.parquet else _write_npz
        todo = [self.shards[index] for index in indices]
        for index, (keys, outputs) in zip(indices, _answers(self._engine, self._pipeline, todo), strict=True):
            write(self.job.part(index), keys, outputs)
            yield index, len(keys)

    def use(self) -> dict[str, float]:
        """Utilisation of the decoders and of every device, between 0 and 1."""
        use = {stage.name: stage.utilisation for stage in self._pipeline.use()}
        return use | {device["name"]: device["utilisation"] for device in self._engine.statistics()["devices"]}

    def close(self) -> None:
        """End the engine."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _total(shards: Sequence[Shard]) -> int | None:
    """Rows of all shards; None where one does not know."""
    return None if any(shard.rows is None for shard in shards) else sum(shard.rows or 0 for shard in shards)


def _only_input(artifact: Path) -> dict[str, Any]:
    inputs = Artifact(artifact).manifest["inputs"]
    if len(inputs) != 1:
        names = ", ".join(x["name"] for x in inputs)
        raise InvalidInput(
            f"A batch job must have a model of 1 input, but {artifact} has {len(inputs)}: {names}. "
            "Call `hasten.load` in a loop, or serve it."
        )
    spec: dict[str, Any] = inputs[0]
    return spec


class _Decode:
    """Chunks to rows that fit the model's input."""

    def __init__(self, spec: dict[str, Any], size: int | None, **options: Any) -> None:
        self._spec, self._size, self._options = spec, size, options
        self._reader: ImageReader | None = None

    def __call__(self, chunk: Chunk) -> np.ndarray:
        if isinstance(chunk.data, bytes):
            self._reader = self._reader or ImageReader.for_input(self._spec, self._size, **self._options)
            try:
                return self._reader(chunk.data)
            except InvalidInput as error:
                raise InvalidInput(f"{chunk.keys[0]}: {error}") from error
        want = self._spec["shape"][1:]
        rows = chunk.data
        flat = None not in want and rows.ndim == 2 and len(want) != 1 and rows.shape[1] == int(np.prod(want))
        if flat:
            rows = rows.reshape(len(rows), *want)  # Parquet lists are flat
        if rows.dtype != self._spec["dtype"] and rows.dtype.kind == np.dtype(self._spec["dtype"]).kind:
            rows = rows.astype(self._spec["dtype"])  # float64 to float32, int64 to int32; not integers to floats
        return rows


def _answers(engine: Engine, pipeline: Pipeline, todo: Sequence[Shard]) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    """Every shard's keys and outputs, when complete; the pipeline does not drain between shards."""
    drawn: deque[tuple[int, tuple[str, ...]]] = deque()

    def chunks() -> Iterator[Chunk]:
        for index, shard in enumerate(todo):
            for chunk in shard.read():
                drawn.append((index, chunk.keys))
                yield chunk

    keys: list[str] = []
    outputs: list[tuple[np.ndarray, ...]] = []
    current = 0

    def collected() -> tuple[list[str], list[np.ndarray]]:
        return keys, [np.concatenate(part) for part in zip(*outputs, strict=True)]

    for answer in engine.map(pipeline.run(chunks())):
        index, own = drawn.popleft()
        while index != current:
            yield collected()
            keys, outputs, current = [], [], current + 1
        keys.extend(own)
        outputs.append(answer)
    while current < len(todo):
        yield collected()
        keys, outputs, current = [], [], current + 1


@contextlib.contextmanager
def held(output: Path) -> Iterator[None]:
    """Keep other jobs out of an output folder until the block ends.

    Raises:
        InvalidInput: Another job is writing to it.
    """
    output.mkdir(parents=True, exist_ok=True)
    with (output / LOCK).open("a+") as lock:
        if take(lock):
            raise InvalidInput(
                f"OUTPUT must be a folder that no other job writes to, but one is writing to {output}. Wait for it, or "
                "name another."
            )
        yield


def _claim(output: Path, job: dict[str, Any]) -> None:
    """Begin in an empty folder, or check that what is there was left by the same job."""
    path = output / _JOB
    if path.exists():
        if json.loads(path.read_text()) != job:
            raise InvalidInput(
                f"OUTPUT must be new or left by the same job, but {output} was made from another artifact, input or "
                "options. Remove it or name another."
            )
        for left in output.glob("*.unfinished"):
            left.unlink()
    elif any(x.name != LOCK for x in output.iterdir()):
        raise InvalidInput(f"OUTPUT must be new or empty, but {output} holds files. Name another.")
    else:
        with _appearing(path) as file:
            file.write(json.dumps(job, indent=1).encode())


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[Any]:
    """A file that is there complete or not at all, also after a power cut."""
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _write_npz(path: Path, keys: list[str], outputs: list[np.ndarray]) -> None:
    arrays: dict[str, Any] = {f"output_{i}": y for i, y in enumerate(outputs)}
    with _appearing(path) as file:
        np.savez(file, key=np.array(keys, dtype=np.str_), **arrays)


def _write_parquet(path: Path, keys: list[str], outputs: list[np.ndarray]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InvalidInput("Writing Parquet needs: pip install pyarrow") from None
    columns: dict[str, Any] = {"key": keys}
    for index, y in enumerate(outputs):
        # A tensor column keeps the shape of a row; scalars are a plain column.
        columns[f"output_{index}"] = y if y.ndim == 1 else pa.FixedShapeTensorArray.from_numpy_ndarray(y)
    with _appearing(path) as file:
        pq.write_table(pa.table(columns), file)
