"""The graphs of a run: recipes that share steps share the work; what was trained is kept on disk."""

import hashlib
import shutil
import time
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import yaml
from safetensors.torch import load_file, save_file
from torch.fx import GraphModule

from hasten.recipe import Stage, Technique, name_of, options_of
from hasten.search.memory import give_back
from hasten.task import Task
from hasten.training import Watch, quiet, watched

Steps = tuple[Technique, ...]

# The original is kept besides. More would only serve recipes that are far apart in time.
_KEPT = 2


class GraphStore:
    """Gives the graph after some steps; at most a few are held in memory, however many a run asks for.

    Weights after a training step before quantization are written to `folder` as safetensors under a hash of all steps;
    the structure is made again by the steps before, which need no training.

    Args:
        graph: The captured original.
        task: What techniques see.
        folder: For weights, checkpoints of a training in flight, and the teacher's answers.
        in_flight: Sub-folder of the latter two; one for every process that trains.
    """

    def __init__(self, graph: GraphModule, task: Task, folder: Path, in_flight: str = "in_flight") -> None:
        self._in_flight = folder / in_flight
        self._original, self._task, self._folder = graph, task, folder
        self._recent: OrderedDict[Steps, GraphModule] = OrderedDict()
        self._pinned: tuple[Steps, GraphModule] | None = None
        self.watch = Watch()

    def after(self, steps: Steps, seconds: dict[str, float], limit_s: float | None = None) -> tuple[GraphModule, Steps]:
        """The graph after `steps`, and the steps that make it again.

        They are the given ones, unless the last was a training that `limit_s` cut short: then that step says where.

        Args:
            steps: In the order of a recipe.
            seconds: Receives the wall time by the technique's name.
            limit_s: Longest time for the training of the last step that trains.
        """
        if not steps:
            return self._original, ()
        if self._pinned is not None and self._pinned[0] == steps:
            return self._pinned[1], steps
        if steps in self._recent:
            self._recent.move_to_end(steps)
            return self._recent[steps], steps
        before, done = self.after(steps[:-1], seconds, limit_s)
        weights = self._folder / f"{key_of((*done, steps[-1]))}.safetensors"
        if trains(steps[-1]) and weights.exists():
            graph, last = _with_weights(before, weights), steps[-1]
        else:
            started = time.perf_counter()
            graph, last = self._apply(steps[-1], before, (*done, steps[-1]), limit_s)
            give_back()
            name = name_of(last)
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
        made = (*done, last)
        self._recent[made] = graph
        while len(self._recent) > _KEPT:
            self._recent.popitem(last=False)
        return graph, made

    def pin(self, steps: Steps) -> None:
        """Hold the graph after `steps`, if it is at hand, in place of the one pinned before: the end asks for it."""
        if steps in self._recent:
            self._pinned = steps, self._recent[steps]

    def has(self, steps: Steps) -> bool:
        """Whether the graph after `steps` is at hand."""
        return not steps or steps in self._recent or (self._pinned is not None and self._pinned[0] == steps)

    def _apply(self, step: Technique, graph: GraphModule, steps: Steps, limit_s: float | None) -> tuple[Any, Technique]:
        """The graph after `step`, and the step as it ended."""
        with quiet(), watched(limit_s) as self.watch:
            if not trains(step):
                result = step.apply(graph, self._task)
                return result, _ended(step, self.watch)
            own = self._in_flight
            self._take(own, key_of(steps))
            result = replace(cast(Any, step), folder=str(own)).apply(graph, self._task)
        ended = _ended(step, self.watch)
        self._keep(result, self._folder / f"{key_of((*steps[:-1], ended))}.safetensors")
        (own / "training.pt").unlink(missing_ok=True)
        return result, ended

    def _take(self, own: Path, key: str) -> None:
        """Make the working folder ready for the training `key`: its own checkpoint may stay, another's goes."""
        own.mkdir(parents=True, exist_ok=True)
        owner = own / "owner"
        if not owner.exists() or owner.read_text() != key:
            (own / "training.pt").unlink(missing_ok=True)
            owner.write_text(key)

    def _keep(self, graph: GraphModule, path: Path) -> None:
        # Tensors that share memory are one in the file's eyes, so each is copied.
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in graph.state_dict().items()}
        partial = path.with_suffix(".part")
        save_file(tensors, partial)
        partial.replace(path)

    def clean(self) -> None:
        """Remove what only a resume needs."""
        for path in self._folder.glob("in_flight*"):
            shutil.rmtree(path, ignore_errors=True)


def key_of(steps: Steps) -> str:
    """A short hash of steps with all their options."""
    text = yaml.safe_dump([{name_of(step): _plain(options_of(step))} for step in steps])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def trains(step: Technique) -> bool:
    """Whether a step trains, so that its weights are kept."""
    return step.stage is Stage.DISTILL and hasattr(step, "folder")


def _ended(step: Technique, watch: Watch) -> Technique:
    if watch.stopped_after is None or not hasattr(step, "stop_after"):
        return step
    return cast(Technique, replace(cast(Any, step), stop_after=watch.stopped_after))


def _with_weights(graph: GraphModule, path: Path) -> GraphModule:
    from hasten.graph.duplicate import duplicate

    result = duplicate(graph)
    result.load_state_dict(load_file(path))
    return result
