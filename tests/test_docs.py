"""The pages agree with the code: nothing is missing, and what they name exists. docs/conftest.py runs their blocks."""

import ast
import functools
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import hasten
from hasten.cli import app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *ROOT.glob("CONTRIBUTING.md")]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TRANSLATED = ["index.md", "concepts.md", "techniques-in-order.md"]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _blocks(path: Path, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(path.read_text()) if kind == language]


@pytest.mark.parametrize("kind", ["techniques", "targets"])
def test_every_part_has_a_page(kind: str) -> None:
    parts = {path.stem for path in (ROOT / "src" / "hasten" / kind).glob("[a-z]*.py")}
    pages = {path.stem: path.read_text() for path in (DOCS / kind).glob("*.md")}
    assert parts == set(pages) - {"index"}, "write docs/techniques/NAME.md or docs/targets/NAME.md"
    for name in parts:
        assert "<!-- options -->" in pages[name]
        assert f"../../src/hasten/{kind}/{name}.py" in pages[name]
        assert "```python\n" in pages[name]


def _commands() -> dict[str, Any]:
    """Every command by its words, such as `targets install`."""

    def walk(words: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield words, command
        for name, part in getattr(command, "commands", {}).items():
            yield from walk(f"{words} {name}".strip(), part)

    return dict(walk("", typer.main.get_command(app)))


@pytest.mark.parametrize("path", [*PAGES, *READMES], ids=_name)
def test_named_commands_and_options_exist(path: Path) -> None:
    commands = _commands()
    shell = [code for language in ("bash", "") for code in _blocks(path, language)]
    lines = [line.split("#")[0] for code in shell for line in code.splitlines()]
    lines += re.findall(r"`(hasten [^`\n]+)`", path.read_text())
    for line in lines:
        found = re.search(r"(?:^|[\s/])hasten ([a-z].*)", line)
        if found is None:
            continue
        words = found[1].split()
        command = commands.get(" ".join(words[:2])) or commands.get(words[0])
        assert command is not None, f"no such command: {line}"
        known = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
        named = {word.split("=")[0].rstrip(",.;") for word in words if word.startswith("--")}
        assert named <= known | {"--help"}, f"no such option: {line}"


@pytest.mark.slow
def test_the_python_of_the_readme_runs(
    digits_task: hasten.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = _blocks(ROOT / "README.md", "python")
    monkeypatch.chdir(tmp_path)
    # One runtime instead of all that are here, and no training: what is tried does not matter to the lines.
    monkeypatch.setattr(hasten, "run", functools.partial(hasten.run, targets=["onnxruntime"]))
    monkeypatch.setattr(hasten, "Budget", functools.partial(hasten.Budget, training=False))
    task = digits_task
    names = {"net": task.model, "x": task.example[0], "loader": task.holdout, "train_loader": task.train}
    namespace: dict[str, Any] = {"hasten": hasten, **names}
    exec(code, namespace)
    assert namespace["outputs"][0].shape == (len(task.example[0]), 10)
    assert (tmp_path / "mine.hasten" / "certificate.json").exists()


@pytest.mark.parametrize("path", [*PAGES, *READMES], ids=_name)
def test_named_files_exist(path: Path) -> None:
    text = path.read_text()
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        # Written by `make bench-report`.
        if not link.startswith(("http://", "https://")) and not link.endswith("benchmarks.md"):
            assert (path.parent / link).exists(), f"{_name(path)} links to {link}"
    for name in re.findall(r"`((?:src|examples|docs|benchmarks)/[\w./-]+\.\w+)`", text):
        assert "NAME" in name or (ROOT / name).exists(), f"{_name(path)} names {name}"


def _links(path: Path) -> set[str]:
    """What a page or its translation leads to, but for the other language."""
    found = re.findall(r"\]\(([^)\s]+)", path.read_text())
    pages = {link if "://" in link else (path.parent / link).resolve().relative_to(ROOT).as_posix() for link in found}
    return {page.replace("docs/zh/", "docs/") for page in pages} - {"README.md", "README.zh-CN.md", _name(path)}


@pytest.mark.parametrize(
    ("english", "chinese"),
    [(DOCS / name, DOCS / "zh" / name) for name in TRANSLATED] + [(ROOT / "README.md", ROOT / "README.zh-CN.md")],
    ids=[*TRANSLATED, "README.md"],
)
def test_translations_say_the_same(english: Path, chinese: Path) -> None:
    def code(path: Path, language: str) -> list[list[str]]:
        return [[line.split("#")[0].rstrip() for line in block.splitlines()] for block in _blocks(path, language)]

    for language in ("python", "bash", "text", ""):
        assert code(english, language) == code(chinese, language)
    for mark in ("\n## ", "\n- ", "\n| ", "\n!["):
        assert english.read_text().count(mark) == chinese.read_text().count(mark), f"{mark!r} differs in number"
    numbers = [set(re.findall(r"\d[\d.%]*\d", path.read_text())) for path in (english, chinese)]
    assert numbers[0] == numbers[1]
    own = english.relative_to(ROOT).as_posix()
    assert _links(english) - {own} == _links(chinese) - {own}


def test_explained_messages_are_those_of_the_source() -> None:
    messages = runpy.run_path(str(DOCS / "messages.py"))["messages"]
    known = [text for _, _, text in messages()]
    lines = (DOCS / "troubleshooting.md").read_text().splitlines()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    explained = [row for row in rows if row != "message"]
    assert len(explained) > 30
    for row in explained:
        assert any(text.startswith(row.rstrip("… ")) for text in known), f"no such message: {row}"


@pytest.mark.parametrize("path", sorted((DOCS / "coming-from").glob("*.md")), ids=_name)
def test_old_calls_parse(path: Path) -> None:
    for code in _blocks(path, "py"):
        ast.parse(code)


def test_the_drawing_is_current() -> None:
    subprocess.run([sys.executable, DOCS / "draw_architecture.py", "--check"], check=True)


def test_pictures_load_nothing_and_have_no_background() -> None:
    for path in set((DOCS / "pictures").glob("*.svg")) - {DOCS / "pictures" / "demo.svg"}:
        text = path.read_text()
        assert "<script" not in text
        assert "href=" not in text
        assert 'width="100%" height="100%"' not in text
