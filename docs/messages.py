"""Every message that hasten raises on purpose, read from the source; troubleshooting.md is checked against it."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
_CLASSES = ("InvalidInput", "Unsupported", "DeviceFailed", "StackFailed", "ProgramFailed", "Overloaded", "TooSlow")


def messages() -> list[tuple[str, str, str]]:
    """(file, class, message) of every raise with a text, values written as `…`."""
    found = set()
    for path in sorted((ROOT / "src" / "hasten").rglob("*.py")):
        for kind, text in _raised(ast.parse(path.read_text())):
            # Shorter ones only pass on what something else said.
            if len(text.replace("…", "").strip()) > 12:
                found.add((path.relative_to(ROOT).as_posix(), kind, text))
    return sorted(found)


def table() -> str:
    """All messages as Markdown, by file."""
    lines: list[str] = []
    last = ""
    for path, kind, text in messages():
        if path != last:
            lines += ["", f"**[`{path}`](../{path})**", ""]
            last = path
        lines.append(f"- {kind}: {text.replace('|', chr(92) + '|').replace('<', '&lt;')}")
    return "\n".join(lines)


def _raised(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in _CLASSES:
                yield name, _text(node.args[0])


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "…"
