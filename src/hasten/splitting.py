"""`hasten.split`: one graph over two targets, cut where the measured pipeline is fastest, or refused.

The cost model proposes cuts, timing both parts on both targets chooses among them, and running the pipeline beside
the whole graph decides whether any is worth it.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from torch.fx import GraphModule

from hasten.artifact import Artifact
from hasten.compiling import compile
from hasten.engine.chain import Chain
from hasten.engine.engine import Engine
from hasten.engine.profile import run_together
from hasten.engine.runner import Runner, open_artifact
from hasten.errors import HastenError, InvalidInput, Unsupported
from hasten.graph.capture import capture_as_is, has_dynamic_batch
from hasten.graph.cut import Cut, cuts, split_at, spread
from hasten.graph.fuse import fuse
from hasten.measure.latency import bootstrap_interval
from hasten.task import Task

Opener = Callable[[Path], Runner]


@dataclass(frozen=True)
class Split:
    """A graph in two artifacts.

    Attributes:
        first, second: The parts; the outputs of the first are the inputs of the second.
        targets: Their targets.
        cut: Where the graph was cut.
        rows_per_s: Measured medians: of the pipeline (`split`) and of everything that it was compared with.
        gain: Rows per second of the pipeline / of the best whole graph in the same turn: the lower end of the median's
            95% bootstrap interval over the turns.
    """

    first: Artifact
    second: Artifact
    targets: tuple[str, str]
    cut: Cut
    rows_per_s: dict[str, float]
    gain: float
    opener: Opener = field(default=open_artifact, repr=False)

    def engine(self, **options: Any) -> Chain:
        """The pipeline of both parts; `options` are those of `hasten.Engine`."""
        return Chain(self.opener(self.first.path), self.opener(self.second.path), **options)


def split(
    graph: GraphModule,
    task: Task,
    targets: tuple[str, str] = ("openvino", "onnxruntime"),
    out: str | os.PathLike[str] = "split",
    *,
    batch: int = 8,
    tries: int = 4,
    turns: int = 5,
    turn_s: float = 0.3,
    worth: float = 1.03,
    opener: Opener = open_artifact,
) -> Split:
    """Cut a graph in two and put each part on one of two targets, pipelined, where that is measured to pay.

    Args:
        graph: Captured graph, as it is or changed by techniques.
        task: Its task; `preprocess` and `postprocess` become part of the graph.
        targets: Two names; either may get the first part.
        out: Folder for the two artifacts; must not exist.
        batch: Rows of every timed call.
        tries: Cuts that are compiled and timed, spread evenly over the cost.
        turns: Rounds of the final comparison, pipeline and whole graphs in turns.
        turn_s: Seconds of every measurement.
        worth: Smallest gain over the best whole graph (on either target, or on both at once) that is accepted.
        opener: Opens an artifact as a device of the engine.

    Raises:
        InvalidInput: A target cannot be used here, `out` exists, or a number is out of range.
        Unsupported: The graph cannot be cut, or no cut pays; the message says what was measured.
    """
    if len(targets) != 2 or tries < 1 or turns < 1 or batch < 1:
        raise InvalidInput("`targets` must be two names, and `tries`, `turns` and `batch` at least 1.")
    if Path(out).exists():
        raise InvalidInput(f"`out` must not exist yet, but {out} does. Remove it or name another.")
    # Captured again, so that every node says what it computes, also behind quantization.
    graph = capture_as_is(fuse(graph, task), task.example, dynamic=has_dynamic_batch(graph))
    task = replace(task, preprocess=None, postprocess=None)
    proposed = spread(cuts(graph), tries)
    if not proposed:
        raise Unsupported("The graph cannot be cut: nowhere do at most 4 tensors with a batch dimension cross.")
    with tempfile.TemporaryDirectory() as scratch:
        bench = _Bench(graph, task, targets, Path(scratch), batch, turn_s, opener)
        whole = {name: bench.compiled("whole", graph, task, name) for name in dict.fromkeys(targets)}
        candidates = bench.candidates(proposed)
        found = [(x, *bench.compare(x, whole, turns)) for x in candidates]
        best, rates, gain = max(found, key=lambda entry: entry[2])
        if gain < worth:
            raise Unsupported(_refusal(best, rates, gain, worth))
        parts = [Artifact(x).save(Path(out) / name) for x, name in zip(best.paths, _NAMES, strict=True)]
    return Split(parts[0], parts[1], best.targets, best.cut, rates, gain, opener)


_NAMES = ("first.hasten", "second.hasten")


@dataclass(frozen=True)
class _Candidate:
    cut: Cut
    targets: tuple[str, str]
    paths: tuple[Path, Path]
    seconds: tuple[float, float]


class _Bench:
    """Compiles and times the parts."""

    def __init__(
        self,
        graph: GraphModule,
        task: Task,
        targets: tuple[str, str],
        scratch: Path,
        batch: int,
        turn_s: float,
        opener: Opener,
    ) -> None:
        self._graph, self._task, self._targets, self._scratch = graph, task, targets, scratch
        self._batch, self._turn_s, self._opener = batch, turn_s, opener

    def compiled(self, label: str, graph: GraphModule, task: Task, target: str) -> Path:
        return compile(graph, task, target, self._scratch / f"{label}-{target}.hasten").path

    def candidates(self, proposed: Sequence[Cut]) -> list[_Candidate]:
        """The pair with the shortest longer part, and the one with the shortest sum where the devices share cores.

        Raises:
            Unsupported: No cut could be compiled on these targets.
        """
        timed, failure = [], ""
        for number, cut in enumerate(proposed):
            try:
                timed += self._timed(number, cut)
            except HastenError as error:  # a part may be what one target cannot run
                failure = str(error)
        if not timed:
            raise Unsupported(f"No cut could be compiled for {' and '.join(self._targets)}: {failure}")
        best = [min(timed, key=lambda x: max(x.seconds)), min(timed, key=lambda x: sum(x.seconds))]
        return best[:1] if best[0] is best[1] else best

    def _timed(self, number: int, cut: Cut) -> list[_Candidate]:
        first, second, passed = split_at(self._graph, cut, self._task.example)
        tasks = self._task, replace(self._task, example=passed)
        paths = {
            (index, name): self.compiled(f"{number}-{index}", part, tasks[index], name)
            for index, part in enumerate((first, second))
            for name in dict.fromkeys(self._targets)
        }
        seconds = {key: self._seconds(path) for key, path in paths.items()}
        orders = dict.fromkeys(permutations(self._targets))  # two equal targets have one order
        return [_Candidate(cut, (a, b), (paths[0, a], paths[1, b]), (seconds[0, a], seconds[1, b])) for a, b in orders]

    def _seconds(self, path: Path) -> float:
        runner = self._opener(path)
        try:
            return run_together([runner], [runner.fixed or self._batch], self._turn_s)[0] / len(runner.lanes)
        finally:
            runner.close()

    def compare(self, candidate: _Candidate, whole: dict[str, Path], turns: int) -> tuple[dict[str, float], float]:
        """Median rows per second of the pipeline and of the whole graph placed in every way, and the gain."""
        options: dict[str, Any] = {"largest": self._batch, "profile_s": self._turn_s}
        rates: dict[str, list[float]] = {}
        with ExitStack() as stack:
            ways: dict[str, Engine | Chain] = {
                "split": stack.enter_context(Chain(*map(self._opener, candidate.paths), **options))
            }
            for name, path in whole.items():
                ways[name] = stack.enter_context(Engine(self._opener(path), **options))
            if len(whole) > 1:
                both = map(self._opener, whole.values())
                ways[" and ".join(whole)] = stack.enter_context(Engine(*both, **options))
            for turn in range(turns):
                for name in list(ways)[:: 1 if turn % 2 == 0 else -1]:
                    rates.setdefault(name, []).append(self._rate(ways[name]))
        # The gain that even an unlucky draw of turns would show: a machine varies by more than a small gain.
        gains = [own / max(rates[n][i] for n in rates if n != "split") for i, own in enumerate(rates["split"])]
        return {name: statistics.median(values) for name, values in rates.items()}, bootstrap_interval(np.array(gains))[
            0
        ]

    def _rate(self, way: Engine | Chain) -> float:
        arrays = [x.detach().cpu().numpy() for x in self._task.example]
        rows = tuple(np.take(x, np.arange(self._batch), axis=0, mode="wrap") for x in arrays)
        start = time.perf_counter()
        end = start + self._turn_s

        def source() -> Iterator[tuple[np.ndarray, ...]]:
            yield rows
            while time.perf_counter() < end:
                yield rows

        answered = sum(len(outputs[0]) for outputs in way.map(source()))
        return answered / (time.perf_counter() - start)


def _refusal(best: _Candidate, rates: dict[str, float], gain: float, worth: float) -> str:
    measured = ", ".join(f"{name} {rate:.4g}" for name, rate in rates.items())
    return (
        f"Splitting must gain at least {worth:g}x to pay, but the best cut (after {best.cut.after}, {best.targets[0]} "
        f"then {best.targets[1]}) gives no more than {gain:.2f}x of the best whole graph for certain. "
        f"Rows per second: {measured}. "
        "Run the whole graph."
    )
