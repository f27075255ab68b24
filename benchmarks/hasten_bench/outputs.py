"""What a program answers on the test rows, kept beside it: accuracy needs no quiet machine, only time does."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from hasten.errors import HastenError
from hasten_bench import kept
from hasten_bench.handover import Handover
from hasten_bench.timing import start_worker
from hasten_bench.tool import Answer

_BATCH = 16
_NO_ANSWER = "no answer to"


def keep_outputs(answer: Answer, handover: Handover, folder: Path) -> Answer:
    """Run the program on every test row once; one that cannot be loaded or run becomes a failure.

    Args:
        answer: With a program.
        handover: The work, with its test rows.
        folder: Where the answer is kept; gets `outputs.npy`, the first output [n, ...].
    """
    if answer.failure or (folder / "outputs.npy").exists():
        return answer
    try:
        found = _outputs(answer, handover, folder / "timing")
    except HastenError as error:
        answer = replace(answer, failure=str(error))
        if _NO_ANSWER not in answer.failure:  # on a busy machine it may answer the next time
            kept.write(answer, folder)
        return answer
    np.save(folder / "outputs.npy", found)
    return answer


def read_outputs(folder: Path, rows: int) -> np.ndarray | None:
    """The first `rows` outputs of a kept program, or None if it has none."""
    path = folder / "outputs.npy"
    return np.load(path)[:rows] if path.exists() else None


def _outputs(answer: Answer, handover: Handover, scratch: Path) -> np.ndarray:
    rows = np.arange(handover.inputs[0].shape[0])
    with start_worker(answer, scratch) as worker:
        worker.time_calls(handover.inputs, 1, 0.0, least=1)
        try:
            files = worker.infer(handover.inputs, rows, scratch / "outputs", _BATCH)
        except HastenError:
            # Some tools export for a batch of 1 alone.
            with start_worker(answer, scratch) as again:
                files = again.infer(handover.inputs, rows, scratch / "outputs", 1)
    array = np.array(files[0].open())
    if not np.isfinite(array).all():
        raise HastenError("its outputs are not finite")
    return array
