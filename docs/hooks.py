"""What the site derives from the code when it is built: option tables, commands, messages, source files.

Markers in pages: `<!-- options -->` (under techniques/ and targets/), `<!-- commands -->`, `<!-- messages -->`. Links
to `../src/hasten/*.py` and `../examples/*.py` work in a checkout; in the site they lead to a page that shows the file.
"""

import dataclasses
import os
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import messages  # noqa: E402  (beside this file, which is loaded by its path)

ROOT = DOCS.parent
# What a page may load; everything else would need the network.
_EXTERNAL = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^>]*>""")
# Written by `make bench-report`.
_GENERATED = ("benchmarks.md",)
_SOURCE_LINK = re.compile(r"\]\((?:\.\./)+((?:src/hasten|examples)/[\w/]+\.py)(?:#L\d+)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Expand `folder/*` in the navigation; leave out generated pages that were not generated."""
    config["nav"] = _expanded(config["nav"])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every source file that pages may link to."""
    for path in sorted([*(ROOT / "src" / "hasten").rglob("*.py"), *(ROOT / "examples").glob("*.py")]):
        name = path.relative_to(ROOT).as_posix()
        text = f"---\nsearch:\n  exclude: true\n---\n# {name}\n\n````python\n{path.read_text()}````\n"
        files.append(File.generated(config, _source_page(name), content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the markers and point links to source files at their pages."""
    here = page.file.src_uri
    if "<!-- options -->" in markdown:
        markdown = markdown.replace("<!-- options -->", options_table(*here.removesuffix(".md").split("/")[-2:]))
    if "<!-- commands -->" in markdown:
        markdown = markdown.replace("<!-- commands -->", commands())

    if "<!-- messages -->" in markdown:
        markdown = markdown.replace("<!-- messages -->", messages.table())

    def to_page(match: re.Match[str]) -> str:
        return f"]({os.path.relpath(_source_page(match[1]), os.path.dirname(here) or '.')})"

    return _SOURCE_LINK.sub(to_page, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse pages that load anything from the network."""
    if found := _EXTERNAL.search(output):
        raise PluginError(f"{page.file.src_uri} must load nothing from the network, but has {found[0]}")
    return output


def options_table(kind: str, name: str) -> str:
    """The options of a technique or target as a table, from the fields of its dataclass."""
    from hasten.recipe import targets, techniques

    part = {"techniques": techniques, "targets": targets}[kind]()[name]
    fields = dataclasses.fields(typing.cast(Any, part))
    if not fields:
        return "It has no options."
    rows = [f"| `{f.name}` | {_code(f.default)} | {_allowed(f)} | {f.metadata.get('help', '')} |" for f in fields]
    return "\n".join(["| option | default | allowed | what it does |", "|---|---|---|---|", *rows])


def commands() -> str:
    """Every command with its usage, arguments and options, from the command line itself."""
    import typer.main

    from hasten.cli import app

    return "\n\n".join(_command_text(name, command) for name, command in _walk("hasten", typer.main.get_command(app)))


def _walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    subcommands = getattr(command, "commands", {})
    if name != "hasten" and not command.hidden:
        yield name, command
    for part in subcommands:
        yield from _walk(f"{name} {part}", subcommands[part])


def _command_text(name: str, command: Any) -> str:
    shown = [p for p in command.params if p.name != "help" and not getattr(p, "hidden", False)]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    usage = " ".join([name, *map(_argument, arguments), "[OPTIONS]"])
    lines = [f"## {name}", (command.help or "").strip(), f"```text\n{usage}\n```"]
    rows = [
        f"| `{', '.join([*p.opts, *p.secondary_opts])}` | {_default(p)} | {p.help or ''} |"
        for p in shown
        if p.param_type_name == "option"
    ]
    if about := [f"- `{_argument(p)}`: {p.help}" for p in arguments if getattr(p, "help", None)]:
        lines.append("\n".join(about))
    if rows:
        lines.append("\n".join(["| option | default | what it does |", "|---|---|---|", *rows]))
    if getattr(command, "epilog", None):
        lines.append("```bash\n" + "\n".join(line.strip() for line in command.epilog.splitlines()[2:]) + "\n```")
    return "\n\n".join(lines)


def _argument(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _default(parameter: Any) -> str:
    if isinstance(parameter.default, bool):
        return "on" if parameter.default else "off"
    return "" if parameter.default is None else _code(parameter.default)


def _allowed(field: dataclasses.Field[Any]) -> str:
    meta = field.metadata
    if meta.get("choices") is not None:
        return ", ".join(_code(x) for x in meta["choices"])
    low, high = meta.get("low"), meta.get("high")
    if low is None and high is None:
        return "true, false" if isinstance(field.default, bool) else ""
    if high is None:
        return f"{low:g} or more"
    return f"{low:g} to {high:g}" + (", exclusive" if meta.get("open_high") else "")


def _code(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if text else ""


def _expanded(entries: list[Any]) -> list[Any]:
    found: list[Any] = []
    for entry in entries:
        if isinstance(entry, str) and entry.endswith("/*"):
            found += _pages(entry.removesuffix("/*"))
        elif isinstance(entry, dict):
            ((title, value),) = entry.items()
            if value in _GENERATED and not (DOCS / value).exists():
                continue
            is_folder = isinstance(value, str) and value.endswith("/*")
            found.append({title: _pages(value.removesuffix("/*")) if is_folder else _below(value)})
        else:
            found.append(entry)
    return found


def _below(value: Any) -> Any:
    return _expanded(value) if isinstance(value, list) else value


def _pages(folder: str) -> list[str]:
    """Pages of a folder, `index.md` first."""
    names = [f"{folder}/{path.name}" for path in (DOCS / folder).glob("*.md")]
    return sorted(names, key=lambda name: (not name.endswith("/index.md"), name))


def _source_page(name: str) -> str:
    return f"source/{name.removesuffix('.py')}.md"
