"""What a running search tells: what is being tried, the best so far, the time left."""

from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Listener(Protocol):
    """Receives the events of a search."""

    def begin(self, total: int) -> None:
        """`total` trials are planned."""
        ...

    def trying(self, what: str) -> None:
        """A step or trial begins."""
        ...

    def done(self, line: str, best: str) -> None:
        """A trial ended; `line` tells how, `best` the best so far."""
        ...

    def say(self, line: str) -> None:
        """Something the user should know."""
        ...


class Silent:
    """Tells nothing."""

    def begin(self, total: int) -> None:
        """Nothing."""

    def trying(self, what: str) -> None:
        """Nothing."""

    def done(self, line: str, best: str) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


class Bar:
    """A progress bar on the terminal; plain lines where there is none. A context manager."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[best]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._console = console
        self._begun = False
        self._task = self._progress.add_task("starting", total=None, best="")

    def begin(self, total: int) -> None:
        """Show how many trials are planned."""
        self._begun = True
        self._progress.update(self._task, total=total)

    def trying(self, what: str) -> None:
        """Show what is being tried; in a log, once the model is known to run, on a line that tells what takes long."""
        if self._begun and not self._console.is_terminal:
            self._console.print(f"{what} ...", markup=False, highlight=False, soft_wrap=True)
        self._progress.update(self._task, description=what if len(what) < 60 else what[:57] + "...")

    def done(self, line: str, best: str) -> None:
        """Print how the trial ended and advance."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._progress.update(self._task, advance=1, best=best)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
