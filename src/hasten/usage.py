"""What the commands share towards their user: examples under `--help`, and a line that says what is waited for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

EXAMPLES = {
    "run": (
        "hasten run task.py --max-drop 1% --minutes 30",
        "hasten run task.py --targets openvino,onnxruntime --out runs/b --watch",
        "hasten run task.py --max-size 256KB --objective size --no-training",
        "hasten run task.py --out runs/b --resume",
    ),
    "apply": ("hasten apply runs/last/best.hasten/recipe.yaml task.py --out again.hasten",),
    "verify": ("hasten verify runs/last/best.hasten", "hasten verify runs/last/best.hasten --task task.py --json"),
    "bench": ("hasten bench runs/last/best.hasten --against again.hasten --batch 8",),
    "report": ("hasten report runs/last", "hasten report runs/last --json"),
    "doctor": ("hasten doctor task.py", "hasten doctor runs/last/best.hasten --rows 0"),
    "targets": ("hasten targets", "hasten targets install litert ethos_u"),
    "install": ("hasten targets install fpga",),
    "docs": ("hasten targets docs",),
    "techniques": ("hasten techniques --json",),
    "init": ("hasten init", "hasten init mine.py --kind images --data photos --model mynet:make"),
    "batch": (
        "hasten batch runs/last/best.hasten inputs.npy answers/",
        "hasten batch runs/last/best.hasten photos/ answers/ --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
    ),
    "serve": (
        "hasten serve runs/last/best.hasten --port 8000",
        "hasten serve mine=live.hasten --bound-ms 100 --host 0.0.0.0 --api-key-file key.txt",
    ),
}


def examples(name: str) -> str:
    """The end of a command's help; `\\b` keeps the lines as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[name])


def add_examples(app: typer.Typer) -> None:
    """Give every command of `app` its examples."""
    for command in app.registered_commands:
        if command.name is not None:
            command.epilog = examples(command.name)


@contextmanager
def waiting(what: str, *, quiet: bool, expected_s: float | None = None) -> Iterator[Callable[[str], None]]:
    """A line on the terminal with what is being done, for how long, and how long it should take.

    Args:
        what: What is being done at first; call what is yielded to change it.
        quiet: Show nothing. Neither is anything shown where standard error is no terminal.
        expected_s: How long it should take.
    """
    from rich.console import Console  # here, since `serve` is to start quickly
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    rest = "" if expected_s is None else f"of about {max(1, round(expected_s))} s"
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn(), TextColumn(rest))
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        shown = bar.add_task(what, total=None)
        yield lambda text: bar.update(shown, description=text)
