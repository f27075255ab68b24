"""Trials on the machines of a Ray cluster: one at a time on each, so that a latency is measured alone.

The driver plans, keeps the journal and takes the finals; a machine applies, compiles, times and scores one recipe after
another, in turns with the original that runs beside it there. Only machines of the driver's device class and versions
take part. What a lost machine was at is done again on another.
"""

import contextlib
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from hasten.errors import HastenError, InvalidInput
from hasten.machine import fingerprint
from hasten.measure.holdout import Holdout
from hasten.recipe import Recipe
from hasten.search.folder import JOURNAL
from hasten.search.trial import Trial
from hasten.task import Task
from hasten.unreported import import_ray

# What must be the same for two timings to be comparable, and for a recipe to give the same weights.
_CLASS = ("system", "cpu", "cores", "instruction_sets", "versions")
_START_S = 300.0
_MOST_LOSSES = 3


class NodesLost(HastenError):
    """No machine is left for trials."""


@dataclass(frozen=True)
class Job:
    """A trial to make: its number, its recipe, and the longest time for its training."""

    number: int
    recipe: Recipe
    limit_s: float | None


@dataclass
class _Node:
    """A machine that takes part; `actor` is its process for trials."""

    id: str
    name: str
    cores: float
    actor: Any = None


@dataclass
class _Wave:
    """Jobs that are being made: to be made again, in the making, made but not yet told, lost how often."""

    again: deque[Job] = field(default_factory=deque)
    running: dict[Any, tuple[_Node, Job]] = field(default_factory=dict)
    done: dict[int, tuple[Trial, str]] = field(default_factory=dict)
    lost: dict[int, int] = field(default_factory=dict)


class Nodes:
    """The machines of a cluster that are like this one; a context manager that gives them back.

    Args:
        address: Of the cluster; "auto": the one this machine belongs to. A cluster that this process is connected to
            already is used as it is.
        task: The user's task; must be picklable, and its code importable under the same paths on every machine.
        holdout: As stored in `folder`.
        folder: The run folder, which every machine sees under the same path, as on a shared file system.
        objective, compile_limit_s, limits: See `Bench`.

    Attributes:
        refused: Why a machine does not take part, by its name.
        shared: Hosts that several nodes of the cluster are on, whose timings disturb each other.

    Raises:
        InvalidInput: Ray is not installed, there is no cluster, the task cannot be sent, or no machine is fit.
    """

    def __init__(
        self,
        address: str,
        task: Task,
        holdout: Holdout,
        folder: Path,
        objective: str,
        compile_limit_s: float,
        limits: Mapping[str, float],
    ) -> None:
        self._ray = ray_for_trials()
        self._nodes: list[_Node] = []
        self.refused: dict[str, str] = {}
        self.shared: list[str] = []
        about = (objective, compile_limit_s, dict(limits))
        setup = {"task": task, "holdout": holdout, "folder": folder, "about": about}
        self._folder = folder
        self._setup = _pickled(self._ray, setup)
        self._owned = not self._ray.is_initialized()
        if self._owned:
            try:
                self._ray.init(address=address, log_to_driver=False, configure_logging=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InvalidInput(
                    f"`ray` must be 'auto' or the address of a running cluster, but {address!r} cannot be reached: "
                    f"{str(error).splitlines()[0][:200]} Start one with `ray start --head`."
                ) from None
        try:
            self._take(self._found())
            if not self._nodes:
                raise InvalidInput(f"`ray` must name a cluster with a machine like this one, but: {self._why()}.")
        except BaseException:
            self.close()
            raise

    @property
    def names(self) -> list[str]:
        """The machines that take part."""
        return [node.name for node in self._nodes]

    def trials(self, jobs: Iterable[Job]) -> Iterator[tuple[Trial, str]]:
        """The trials of `jobs` with the names of their machines, in the order of `jobs`.

        A job is asked for when a machine is free for it. If asking raises, what is in the making is finished and told
        before.

        Raises:
            NodesLost: No machine is left.
        """
        source, wave, order = iter(jobs), _Wave(), deque[int]()
        stopped: Exception | None = None
        self._check_any()
        while True:
            for node in self._free(wave):
                if wave.again:
                    self._begin(wave, node, wave.again.popleft())
                    continue
                try:
                    job = None if stopped else next(source, None)
                except Exception as error:
                    stopped, job = error, None
                if job is not None:
                    order.append(job.number)
                    self._begin(wave, node, job)
            while order and order[0] in wave.done:
                yield wave.done.pop(order.popleft())
            if order:
                self._wait(wave)
            elif not wave.running:
                break
        if stopped is not None:
            raise stopped

    def close(self) -> None:
        """End the processes on all machines, and the connection if it was made here."""
        for node in self._nodes:
            self._end(node)
        self._nodes = []
        for scratch in self._folder.glob("compiler-*"):
            shutil.rmtree(scratch, ignore_errors=True)
        if self._owned:
            self._ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _free(self, wave: _Wave) -> list[_Node]:
        busy = {node.id for node, _ in wave.running.values()}
        return [node for node in self._nodes if node.id not in busy]

    def _begin(self, wave: _Wave, node: _Node, job: Job) -> None:
        wave.running[node.actor.try_recipe.remote(job.number, job.recipe.to_yaml(), job.limit_s)] = node, job

    def _wait(self, wave: _Wave) -> None:
        """Until one job is made, or is lost and has to be made again."""
        self._check_any()
        ready, _ = self._ray.wait(list(wave.running), num_returns=1)
        node, job = wave.running.pop(ready[0])
        try:
            wave.done[job.number] = Trial.from_json(self._ray.get(ready[0])), node.name
        except self._ray.exceptions.RayActorError as error:
            wave.lost[job.number] = wave.lost.get(job.number, 0) + 1
            self._replace(node, str(error).splitlines()[0])
            if wave.lost[job.number] < _MOST_LOSSES:
                wave.again.append(job)
            else:
                failure = f"the process that tried it ended {_MOST_LOSSES} times, last on {node.name}"
                wave.done[job.number] = Trial(job.number, job.recipe, failure=failure), node.name

    def _replace(self, node: _Node, why: str) -> None:
        """A new process on the same machine, if that still stands; else it takes no further part."""
        self._nodes.remove(node)
        if node.id in {n["NodeID"] for n in self._ray.nodes() if n["Alive"]}:
            self._take([node])
        else:
            self.refused[node.name] = f"it was lost ({why})"

    def _found(self) -> list[_Node]:
        alive = [n for n in self._ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
        hosts = [n["NodeManagerHostname"] for n in alive]
        self.shared = sorted({host for host in hosts if hosts.count(host) > 1})
        return [
            _Node(n["NodeID"], f"{n['NodeManagerHostname']}/{n['NodeID'][:6]}", n["Resources"]["CPU"]) for n in alive
        ]

    def _take(self, nodes: list[_Node]) -> None:
        """Start a process on every node and give it the task; who cannot take part is refused by name."""
        opened = {}
        for node in nodes:
            strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node.id, soft=False)
            # All cores: nothing else that Ray places may disturb a measurement.
            make = self._ray.remote(TrialMaker).options(num_cpus=node.cores, scheduling_strategy=strategy)
            node.actor = make.remote(list(sys.path), _threads())
            opened[node.id] = node.actor.open.remote(self._setup, node.id[:8], fingerprint())
        self._ray.wait(list(opened.values()), num_returns=len(opened), timeout=_START_S)
        for node in nodes:
            try:
                failure = self._ray.get(opened[node.id], timeout=1)
            except self._ray.exceptions.GetTimeoutError:
                failure = f"its cores did not become free, or it did not start, in {_START_S:.0f} s"
            except self._ray.exceptions.RayError as error:
                failure = f"it could not start: {str(error).strip().splitlines()[-1][:200]}"
            if failure:
                self.refused[node.name] = failure
                self._end(node)
            else:
                self._nodes.append(node)

    def _check_any(self) -> None:
        if not self._nodes:
            raise NodesLost(f"No Ray node is left for trials ({self._why()}). `--resume` goes on with what is done.")

    def _end(self, node: _Node) -> None:
        with contextlib.suppress(Exception):  # it may be lost
            self._ray.kill(node.actor)

    def _why(self) -> str:
        return "; ".join(f"{name}: {why}" for name, why in self.refused.items()) or "it has no machine with cores"


class TrialMaker:
    """The process on a machine: the original running beside whatever is tried. An actor's calls come one at a time."""

    def __init__(self, path: list[str], threads: dict[str, Any]) -> None:
        import torch

        sys.path[:] = list(dict.fromkeys([*path, *sys.path]))
        # Ray sets its own number; sums in another order would give other weights.
        torch.set_num_threads(threads["torch"])
        for name, value in threads["environment"].items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})

    def open(self, setup: bytes, name: str, like: dict[str, Any]) -> str:
        """Take the task and start the original; empty, or why that cannot be.

        Args:
            setup: Pickled by the driver: task, holdout, run folder, objective, time limit of a compilation,
                limits.
            name: Of this machine.
            like: Fingerprint of the driver.
        """
        import pickle

        from hasten.errors import reason
        from hasten.graph.capture import capture
        from hasten.search.bench import Bench

        if differs := _differences(fingerprint(), like):
            return f"it is of another device class: {differs}"
        try:
            found = pickle.loads(setup)
            task, folder = found["task"], found["folder"]
            if not (folder / JOURNAL).is_file():
                return f"it does not see {folder}; the run folder must be on a file system that all machines share"
            graph = capture(task.model, task.inner.example)
            trials, (objective, limit_s, limits) = folder / "trials", found["about"]
            own = f"-{name}"
            self._bench = Bench(task, graph, found["holdout"], trials, objective, limit_s, own, limits)
        except Exception as error:
            return reason(error)
        return ""

    def try_recipe(self, number: int, recipe: str, limit_s: float | None) -> dict[str, Any]:
        """A trial as plain values; see `Bench.try_recipe`."""
        return self._bench.try_recipe(number, Recipe.from_yaml(recipe), limit_s).to_json()


def ray_for_trials() -> Any:
    """Ray, with what places trials on machines.

    Raises:
        InvalidInput: It is not installed.
    """
    return import_ray("util.scheduling_strategies")


def _pickled(ray: Any, setup: dict[str, Any]) -> bytes:
    try:
        return bytes(ray.cloudpickle.dumps(setup))
    except Exception as error:
        raise InvalidInput(
            f"The task must be picklable to be tried on other machines, but: {type(error).__name__}: {error!s:.200}. "
            "Hold data as tensors or datasets, not as open files or generators."
        ) from error


def _threads() -> dict[str, Any]:
    import torch

    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS")
    return {"torch": torch.get_num_threads(), "environment": {name: os.environ.get(name) for name in names}}


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """In which parts of the device class two machines differ, in words."""
    parts = [part for part in _CLASS if theirs.get(part) != ours.get(part)]
    return "; ".join(f"its {part} {theirs.get(part)!r}, the driver's {ours.get(part)!r}" for part in parts)
