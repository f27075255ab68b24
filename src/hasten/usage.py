"""What the commands share towards their user: help that fits a terminal, and a line that says what is waited for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

# In the order in which `hasten --help` lists the commands.
EXAMPLES = {
    "init": ("hasten init", "hasten init mine.py --kind images --data photos --model mynet:make"),
    "run": (
        "hasten run task.py --max-drop 1% --minutes 30",
        "hasten run task.py --targets openvino,onnxruntime --out runs/b --watch",
        "hasten run task.py --max-size 256KB --objective size --no-training",
        "hasten run task.py --out runs/b --resume",
    ),
    "report": ("hasten report runs/last", "hasten report runs/last --json"),
    "verify": ("hasten verify runs/last/best.hasten", "hasten verify runs/last/best.hasten --task task.py --json"),
    "bench": ("hasten bench runs/last/best.hasten --against again.hasten --batch 8",),
    "apply": ("hasten apply runs/last/best.hasten/recipe.yaml task.py --out again.hasten",),
    "batch": (
        "hasten batch runs/last/best.hasten inputs.npy answers/",
        "hasten batch runs/last/best.hasten photos/ answers/ --size 224",
    ),
    "serve": (
        "hasten serve runs/last/best.hasten --port 8000",
        "hasten serve mine=live.hasten --bound-ms 100 --api-key-file key.txt",
    ),
    "doctor": ("hasten doctor task.py", "hasten doctor runs/last/best.hasten --rows 0"),
    "targets": ("hasten targets", "hasten targets litert", "hasten targets install litert ethos_u"),
    "show": ("hasten targets litert",),
    "install": ("hasten targets install fpga",),
    "docs": ("hasten targets docs",),
    "techniques": ("hasten techniques", "hasten techniques prune_filters"),
}


class Command(TyperCommand):
    """A command whose help names its arguments as the examples do, and lists them with the options."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The names of the arguments, then the options."""
        names = [name for name, _ in self._records(ctx, "argument")]
        return [*names, "[OPTIONS]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """One table of arguments and options."""
        with formatter.section("Options"):
            formatter.write_dl([*self._records(ctx, "argument"), *self._records(ctx, "option")])

    def _records(self, ctx: Any, kind: str) -> list[tuple[str, str]]:
        shown = [p for p in self.get_params(ctx) if p.param_type_name == kind]
        if kind == "argument":
            return [(str(p.metavar or p.name), str(getattr(p, "help", None) or "")) for p in shown]
        records = [record for p in shown if (record := p.get_help_record(ctx))]
        return [(name, help.replace("  [default: ", " [")) for name, help in records]


class Group(TyperGroup):
    """Commands, listed in the order of their examples."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names; those without examples are hidden."""
        return [name for name in EXAMPLES if name in self.commands]


def examples(name: str) -> str:
    """The end of a command's help; `\\b` keeps the lines as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[name])


def add_examples(app: typer.Typer) -> None:
    """Give every command of `app` its examples, and the help that goes with them."""
    for command in app.registered_commands:
        command.cls = Command
        if command.name in EXAMPLES:
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
