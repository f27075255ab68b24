"""A line on the terminal with epoch, loss and remaining time; silent anywhere else."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from torch import Tensor

_REFRESH_STEPS = 10  # reading the loss waits for the device, so not every step
_silenced = ContextVar("_silenced", default=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Show no progress of training inside this context, e.g. because a search shows its own."""
    token = _silenced.set(True)
    try:
        yield
    finally:
        _silenced.reset(token)


class Progress:
    """Context manager around a training run."""

    def __init__(self, wanted: bool, total: int, done: int) -> None:
        console = Console(stderr=True)
        self._shown = wanted and console.is_terminal and not _silenced.get()
        columns = (
            TextColumn("epoch {task.fields[epoch]}  loss {task.fields[loss]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._bar = RichProgress(*columns, console=console, transient=True, disable=not self._shown)
        self._task = self._bar.add_task("train", total=total, completed=done, epoch=0, loss="-")
        self._steps = done

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, loss_sum: Tensor, batches: int, epoch: int) -> None:
        """One more step done; the shown loss is the mean over the epoch so far."""
        self._steps += 1
        if not self._shown:
            return
        if self._steps % _REFRESH_STEPS == 1:
            self._bar.update(self._task, epoch=epoch + 1, loss=f"{float(loss_sum) / batches:.4f}")
        self._bar.advance(self._task)
