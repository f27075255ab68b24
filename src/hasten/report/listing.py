"""The commands `targets` and `techniques`: a line for each in a list, and everything about one that is named."""

import dataclasses
import importlib
import json
import re
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from hasten.errors import unknown
from hasten.recipe import Target, Technique, targets, techniques
from hasten.report.targets import targets_page
from hasten.usage import Group, add_examples, examples

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]

_SHORTEST = 20  # characters of a first clause that says enough by itself
_STAGES = {
    "prune": "make the network smaller",
    "distill": "train or mend what is left",
    "quantize": "compute in fewer bits",
}
_KINDS = {
    "timed": "measured here; only these compete for speed in `hasten run`",
    "simulated": "bit for bit what the device computes, but no time",
    "estimated": "what the vendor's compiler states, but no time",
}


class Entry(NamedTuple):
    """A target or technique in a list: the heading that it stands under, and for a target what is missing here."""

    part: type[Target] | type[Technique]
    heading: str
    missing: str | None = None

    @property
    def about(self) -> str:
        """The first sentence of its file."""
        return _flowing(importlib.import_module(self.part.__module__).__doc__)[0]


class Targets(Group):
    """The commands of `targets`; any other word is the name of a target."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` begin with, or `show`."""
        named = args[0] not in self.commands and not args[0].startswith("-")
        return super().resolve_command(ctx, ["show", *args] if named else args)


def register(app: typer.Typer) -> None:
    """Add `targets` and `techniques`."""
    group = typer.Typer(
        cls=Targets,
        help="List the targets, tell about one, install what some need.",
        epilog=examples("targets"),
        rich_markup_mode=None,
        subcommand_metavar="[NAME | COMMAND]",
    )
    group.callback(invoke_without_command=True)(targets_command)
    group.command("show", hidden=True)(target_command)
    group.command("install")(install_command)
    group.command("docs")(docs_command)
    add_examples(group)
    app.add_typer(group, name="targets")
    app.command("techniques")(techniques_command)


def targets_command(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the targets, and whether each can be used here."""
    if context.invoked_subcommand is None:
        found = {name: Entry(part, part.evidence, part().missing()) for name, part in targets().items()}
        _print(found, _KINDS, as_json, "targets")


def target_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A target.")], as_json: JsonOption = False
) -> None:
    """Tell what a target is, its options, and what it needs here."""
    known = targets()
    if name not in known:
        raise unknown("target", name, known)
    entry = Entry(known[name], known[name].evidence, known[name]().missing())
    facts = {
        "evidence": f"{entry.heading}: {_KINDS[entry.heading]}",
        "here": f"needs: {entry.missing}" if entry.missing else "ready",
        "judges": ", ".join(getattr(entry.part, "judges", ())),
        "recipe": f"target: {{{name}: {{OPTION: VALUE}}}}",
    }
    _print_one(name, entry, facts, as_json)


def install_command(names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Targets.")]) -> None:
    """Make the environments of targets from their pinned lists.

    They are kept under $HASTEN_ENVS, or the user's cache folder.
    """
    from hasten import environments

    for name in names:
        environments.requirements(name)
    for name in names:
        typer.echo(f"installed {environments.install(name)}")


def docs_command(
    measured: Annotated[Path | None, typer.Option(help="JSON written by benchmarks/targets.py.")] = None,
    logic: Annotated[Path | None, typer.Option(help="JSON written by benchmarks/fpga.py.")] = None,
) -> None:
    """Print the page docs/targets.md."""
    typer.echo(targets_page(measured, logic))


def techniques_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A technique to tell everything about.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the techniques, or tell the options of one."""
    found = {name: Entry(part, part.stage.name.lower()) for name, part in techniques().items()}
    if name is None:
        _print(found, _STAGES, as_json, "techniques")
        return
    if name not in found:
        raise unknown("technique", name, found)
    stage = found[name].heading
    facts = {"stage": f"{stage}: {_STAGES[stage]}", "recipe": f"steps: [{name}: {{OPTION: VALUE}}]"}
    _print_one(name, found[name], facts, as_json)


def _print(found: Mapping[str, Entry], headings: Mapping[str, str], as_json: bool, command: str) -> None:
    if as_json:
        typer.echo(json.dumps({name: _as_json(entry) for name, entry in found.items()}, indent=2, default=str))
        return
    wide = max(map(len, found))
    for heading, meaning in headings.items():
        typer.echo(f"{heading}: {meaning}")
        for name, entry in found.items():
            if entry.heading == heading:
                start = f"  {name:<{wide}}  {_state(entry)}"
                typer.echo(start + _few_words(entry.about, _width() - len(start)))
    typer.echo(f"`hasten {command} NAME` tells everything about one.")


def _print_one(name: str, entry: Entry, facts: Mapping[str, str], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({name: _as_json(entry)}, indent=2, default=str))
        return
    typer.echo(_filled(f"{name}: {entry.about}"))
    for paragraph in _flowing(entry.part.__doc__):
        if not paragraph.startswith("Raises:"):
            typer.echo("\n" + _filled(paragraph))
    typer.echo("")
    for label, text in facts.items():
        if text:
            typer.echo(_filled(f"{label:<10}{text}", 10))
    fields: Any = dataclasses.fields(entry.part)  # type: ignore[arg-type]
    typer.echo("\nOptions:" if fields else "\nIt has no options.")
    for field in fields:
        among = f" [{', '.join(map(str, field.metadata['choices']))}]" if field.metadata["choices"] else ""
        typer.echo(_filled(f"  {field.name} ({field.default}): {field.metadata['help']}{among}", 6))


def _as_json(entry: Entry) -> dict[str, Any]:
    fields: Any = dataclasses.fields(entry.part)  # type: ignore[arg-type]
    options = {
        f.name: {"default": f.default, "help": f.metadata["help"], "choices": f.metadata["choices"]} for f in fields
    }
    if entry.missing is None:
        return {"what": entry.about, "stage": entry.heading, "options": options}
    state = f"needs: {entry.missing}" if entry.missing else "usable"
    return {"what": entry.about, "evidence": entry.heading, "state": state, "options": options}


def _state(entry: Entry) -> str:
    if entry.missing is None:
        return ""
    word = "ready" if not entry.missing else "install" if entry.missing.startswith("hasten targets") else "absent"
    return f"{word:<9}"


def _few_words(text: str, room: int) -> str:
    """`text` as far as there is room: to the end of a clause, or else of a word."""
    if len(text) <= room:
        return text
    ends = [match.start() for match in re.finditer(r"[,;:] ", text) if _SHORTEST <= match.start() <= room]
    return text[: ends[-1]] if ends else textwrap.shorten(text, room, placeholder=" ...")


def _flowing(docstring: str | None) -> list[str]:
    """Its paragraphs, each on one line."""
    return [" ".join(paragraph.split()) for paragraph in (docstring or "").split("\n\n")]


def _filled(text: str, indent: int = 0) -> str:
    return textwrap.fill(text, _width(), subsequent_indent=" " * indent, break_on_hyphens=False)


def _width() -> int:
    """Columns of the terminal; where there is none, as many as a file takes."""
    return shutil.get_terminal_size((200, 24)).columns
