"""The run folder: one search at a time in it, new or resumed, and only ever for the same task, budget and seed."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from hasten.alone import LOCK, take
from hasten.distillation.teacher import teacher_key
from hasten.errors import InvalidInput
from hasten.measure.holdout import Holdout, add_values
from hasten.search.journal import Journal
from hasten.training.randomness import isolated, seed_epoch

DATA = "data"
JOURNAL = "journal.jsonl"


@contextmanager
def opened(out: Path, resume: bool) -> Iterator[Path]:
    """Make or take up a run folder and hold it until the block ends.

    Raises:
        InvalidInput: Not writable; has files of something else; is a run and `resume` is off; another process holds it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        files = {path.name for path in out.iterdir()} - {LOCK}
        begun = JOURNAL in files and Journal(out / JOURNAL).find("begin") is not None
        # A run that was refused before it began, for its task or its data, leaves nothing to go on with.
        refused = not begun and files <= {JOURNAL, DATA}
        if files and not refused and not (JOURNAL in files and resume):
            hint = "Pass `resume` (--resume) to go on with the run in it, or n" if begun else "N"
            raise InvalidInput(f"`out` must be a new or empty folder, but {out} has files. {hint}ame another folder.")
        lock = (out / LOCK).open("a+")
    except OSError as error:
        raise InvalidInput(f"`out` must be a writable folder, but {out} is not: {error.strerror}.") from error
    with lock:
        if holder := take(lock):
            raise InvalidInput(
                f"`out` must be a folder that no other search is using, but process {holder} is searching in {out}. "
                "Wait for it, or name another folder."
            )
        yield out.resolve()


def identity(graph: GraphModule, holdout: Holdout, batches: Mapping[str, Any], seed: int) -> dict[str, str]:
    """What tells a task from another: hashes of the model, of the holdout, and of the first batch of other data."""
    found = {"model": teacher_key(graph), "holdout": holdout.content_sha256[:16]}
    for name, source in batches.items():
        first = hashlib.sha256()
        with isolated():  # shuffled and augmented alike whenever it is asked
            seed_epoch(source, seed, 0)
            add_values(first, None if source is None else next(iter(source), None))
        found[name] = first.hexdigest()[:16]
    return found


def check_same(begun: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to resume a run with something else than it began with.

    Args:
        begun: The journal's first event.
        now: The same entries as they are now.

    Raises:
        InvalidInput: Names what differs.
    """
    now = json.loads(json.dumps(now))
    for part in ("task", "device", "budget", "seed", "targets"):
        for name, value in _entries(part, now[part]):
            before = dict(_entries(part, begun[part])).get(name)
            if before != value:
                raise InvalidInput(
                    f"`{name}` must be what the run to resume began with, {before!r}, but is {value!r}. "
                    "Pass the same, or start a new run in another folder."
                )


def _entries(part: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(part, value)]
    if part == "device":
        return [("device", (value["cpu"], value["cores"]))]
    return [(name if part == "budget" else f"{part}.{name}", x) for name, x in value.items()]
