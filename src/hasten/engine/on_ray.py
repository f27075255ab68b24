"""A batch job on Ray Data: an actor pool over many machines, the unit of work is a shard.

A shard's part appears in the output folder complete or not at all, under a name that its number decides. What a dead
node leaves undone is what has no part yet: it runs in another round, and every row is there exactly once.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hasten.engine.batch import BatchReport, Job, ShardRunner, held
from hasten.errors import HastenError, InvalidInput
from hasten.unreported import import_ray

_IN_FLIGHT = 2
_FRUITLESS_ROUNDS = 2
_LOG = logging.getLogger("hasten.engine")
# Reserved per worker: half of what it uses, so that the workers of a dead node find room on the others.
_CORES = 0.5


def run_batch_on_ray(
    artifact: Path,
    source: Path,
    output: Path,
    *,
    address: str = "auto",
    actors: int = 0,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    **options: Any,
) -> BatchReport:
    """Run a batch job on a Ray cluster; see `hasten.engine.batch.run_batch`.

    Args:
        artifact, source, output: Paths that every node sees under the same name, as on a shared file system.
        address: Of the cluster; "auto": the one this machine belongs to; "local": one is started and ended here. A
            cluster that this process is connected to already is used as it is.
        actors: Workers, one core and one replica each; 0: one per core of the cluster.
        progress: Told the rows done and all rows (None: not known).
        options: Of the job: `shard_rows`, `column`, `size`, `mean`, `std`, `crop`, `decoder`, `parquet`.

    Raises:
        InvalidInput: Ray is not installed, or the input or an option breaks a rule.
        HastenError: A row cannot be answered, or no worker is left.
    """
    ray = import_ray("data")
    if actors < 0:
        raise InvalidInput(f"`actors` must be at least 0 (0: one per core), but got {actors}.")
    job = Job(artifact.resolve(), source.resolve(), output.resolve(), decode_threads=1, **options)
    job.check()
    with held(job.output):
        return _run(ray, job, address, actors, progress)


def _run(ray: Any, job: Job, address: str, actors: int, progress: Callable[[int, int | None], None]) -> BatchReport:
    """Rounds over what is left, until every part is there or no worker finishes one."""
    todo, shards = job.begin(), job.shards
    sizes = [shards[index].rows for index in todo]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    start, rows = time.perf_counter(), 0
    owned = not ray.is_initialized()
    if owned:
        ray.init(address=None if address == "local" else address, log_to_driver=False, configure_logging=False)
    try:
        left, fruitless = todo, 0
        while left:
            try:
                for count in _stream(ray, job, left, actors):
                    rows += count
                    progress(rows, total)
            except ray.exceptions.RayError:  # a node died while its worker was starting: the next round has others
                _LOG.warning("a round on Ray ended early", exc_info=True)
            before, left = left, job.begin()
            if total is not None:  # parts of a round that ended early are there, but were not counted
                rows = total - sum(shards[index].rows or 0 for index in left)
            fruitless = fruitless + 1 if len(left) == len(before) else 0
            if fruitless == _FRUITLESS_ROUNDS:
                raise HastenError(f"No worker finished a shard; {len(left)} are left. Are the nodes alive?")
        workers = actors or int(ray.cluster_resources().get("CPU", 1))
    finally:
        if owned:
            ray.shutdown()
    use = {f"{workers} Ray actors": 1.0}
    return BatchReport(rows, len(todo), len(shards) - len(todo), time.perf_counter() - start, use, next(iter(use)))


def _stream(ray: Any, job: Job, todo: list[int], actors: int) -> Iterator[int]:
    """Rows of every part, as it appears; what a node took with it when it died is missing."""
    size = min(len(todo), actors or max(1, int(ray.cluster_resources().get("CPU", 1))))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a worker died; what a worker itself reports is raised below
    numbers = ray.data.from_items([{"shard": index} for index in todo], override_num_blocks=len(todo))
    answered = numbers.map_batches(
        RayWorker,
        fn_constructor_args=(dataclasses.asdict(job),),
        batch_size=1,
        num_cpus=_CORES,
        scheduling_strategy="SPREAD",
        compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=_IN_FLIGHT),
        # An actor that waits for room to restart would hold its shards back for as long.
        max_restarts=0,
        max_task_retries=0,
    )
    for row in answered.iter_rows():
        if row["error"]:
            raise HastenError(row["error"])
        yield int(row["rows"])


class RayWorker:
    """An actor of the pool: one engine of one replica, for as long as the pool lives."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._runner = ShardRunner(Job(**job), replicas=1, threads=1, profile_s=0.2)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Write the part of the shard in `batch["shard"]`; returns its rows, or why it cannot be answered."""
        try:
            rows, error = sum(count for _, count in self._runner.run([int(index) for index in batch["shard"]])), ""
        except HastenError as failure:
            rows, error = 0, str(failure)
        return {"rows": np.array([rows]), "error": np.array([error])}
