"""MetaSchedule within a time limit: candidates are compiled and timed in this process, the best of each kernel is kept.

TVM's own builder and runner start a process per candidate and know no limit but a number of candidates.
"""

import contextlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any

# Candidates of one kernel before the scheduler turns to another: few, so that a short limit reaches every kernel.
_AT_ONCE = 8
# One measurement of a candidate.
_MEASURE_MS = 20
_NO_END = 1_000_000


class _TimeIsUp(Exception):
    """Ends the scheduler, which has no other end; the database keeps what was measured."""


def tune(tasks: Sequence[Any], limit_s: float) -> tuple[Any, dict[str, Any]]:
    """The best loops found for each kernel.

    Args:
        tasks: As MetaSchedule extracts them.
        limit_s: The candidate that is under way then is finished.

    Returns:
        The database, and `tuned` (kernels with a candidate), `candidates`, `failed` ones and `tuning_s`.
    """
    import tvm.s_tir.tensor_intrin  # noqa: F401  (the tuner's first import of it takes as long as a short limit)
    from tvm.s_tir import meta_schedule

    database = meta_schedule.database.MemoryDatabase()
    started = time.monotonic()
    modules: dict[str, Any] = {}
    contexts: list[Any] = []
    counts = {"candidates": 0, "failed": 0}
    if limit_s > 0 and tasks:
        with tempfile.TemporaryDirectory() as logs:
            integration = meta_schedule.relax_integration
            # Evolution breeds for tens of seconds between measurements, and needs a learned cost model to gain by it.
            contexts, weights = integration.extracted_tasks_to_tune_contexts(
                list(tasks), logs, strategy="replay-trace", seed=0, num_threads=1
            )
            with contextlib.suppress(_TimeIsUp):
                meta_schedule.tune.tune_tasks(
                    tasks=contexts,
                    task_weights=weights,
                    work_dir=logs,
                    max_trials_global=_NO_END,
                    num_trials_per_iter=_AT_ONCE,
                    builder=_builder(modules, started + limit_s),
                    runner=_runner(modules, started + limit_s, counts),
                    database=database,
                    cost_model="random",
                    measure_callbacks=[meta_schedule.measure_callback.AddToDatabase()],
                )
    tuned = sum(bool(database.has_workload(context.mod)) for context in contexts)
    return database, {"tuned": tuned, **counts, "tuning_s": round(time.monotonic() - started, 1)}


def _builder(modules: dict[str, Any], end: float) -> Any:
    """Compiles candidates into `modules`, under names that the runner gets, until `end` of the monotonic clock."""
    from tvm.ir.utils import derived_object
    from tvm.s_tir.meta_schedule.builder import BuilderResult, PyBuilder
    from tvm.s_tir.meta_schedule.builder.local_builder import default_build

    @derived_object
    class Builder(PyBuilder):  # type: ignore[misc]
        def build(self, build_inputs: Any) -> list[Any]:
            return [self.one(entry) for entry in build_inputs]

        def one(self, entry: Any) -> Any:
            if time.monotonic() > end:
                return BuilderResult(None, "the time is up")
            try:
                module = default_build(entry.mod, entry.target, None)
            except Exception as error:
                return BuilderResult(None, str(error)[:500])
            name = f"candidate_{len(modules)}"
            modules[name] = module
            return BuilderResult(name, None)

    return Builder()


def _runner(modules: dict[str, Any], end: float, counts: dict[str, int]) -> Any:
    """Times what the builder compiled, until `end` of the monotonic clock."""
    import tvm
    from tvm.ir.utils import derived_object
    from tvm.s_tir.meta_schedule.runner import EvaluatorConfig, PyRunner, PyRunnerFuture, RunnerResult
    from tvm.s_tir.meta_schedule.runner.local_runner import default_alloc_argument
    from tvm.s_tir.meta_schedule.runner.utils import run_evaluator_common

    how = EvaluatorConfig(number=1, repeat=1, min_repeat_ms=_MEASURE_MS)

    @derived_object
    class Future(PyRunnerFuture):  # type: ignore[misc]
        def __init__(self, found: Any) -> None:
            super().__init__()
            self.found = found

        def done(self) -> bool:
            return True

        def result(self) -> Any:
            return self.found

    @derived_object
    class Runner(PyRunner):  # type: ignore[misc]
        def run(self, runner_inputs: Any) -> list[Any]:
            return [Future(self.one(entry)) for entry in runner_inputs]

        def one(self, entry: Any) -> Any:
            if time.monotonic() > end:
                raise _TimeIsUp
            counts["candidates"] += 1
            try:
                module, device = modules.pop(str(entry.artifact_path)), tvm.cpu()
                values = default_alloc_argument(device, [x.as_json() for x in entry.args_info], 1)
                return RunnerResult(run_evaluator_common(module, device, how, values), None)
            except Exception as error:
                counts["failed"] += 1
                return RunnerResult(None, str(error)[:500])

    return Runner()
