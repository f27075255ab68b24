"""The rooms of the house: who may import whom, and how large a file may grow."""

import ast
import re
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "hasten"
FILES = sorted(SOURCE.rglob("*.py"))
FREE = {"errors", "task", "recipe", "graph", "machine"}
# What must be importable, and usable, where torch is not installed.
TORCH_FREE = {
    "errors",
    "recipe",
    "machine",
    "artifact",
    "manifest",
    "seal",
    "cli",
    "targets",
    "engine",
    "serve",
    "measure.worker",
}
LONGEST_FILE = 420  # "about 400"
LONGEST_FUNCTION = 50  # without its docstring
LONGEST_REPEAT = 5  # lines in a row, without blanks, comments, imports and lone punctuation
# Runs that are repeated for a reason, by the files they stand in.
REPEATED = {
    ("graph.aten.neural", "graph.aten.neural"): "the arguments of ATen's two convolutions",
    ("graph.aten.neural", "stacks._jax"): "XLA has a convolution of its own, with ATen's arguments",
    ("gpu.products", "gpu.products"): "an operator that `torch.library` reads the signature of, and its reference",
    ("gpu.kernels", "gpu.kernels"): "the arguments of a Triton kernel and of its launch",
    ("engine.chain", "engine.engine"): "a chain of engines is a context manager as an engine is",
}


def _module(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def _imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Names of modules that a file imports, relative to hasten where they are inside it."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def _inside(path: Path) -> set[str]:
    return {name.removeprefix("hasten.") for name in _imports(path) if name.startswith("hasten.")}


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_imports_go_one_way(path: Path) -> None:
    own, inside = _module(path), _inside(path)
    room = own.split(".")[0]
    rooms = {name.split(".")[0] for name in inside}
    if own != "cli":
        assert "cli" not in rooms
    if room in FREE:
        assert not rooms & {"techniques", "targets", "search", "measure", "report", "engine", "compiling"}
    if room == "techniques":
        assert not rooms & {"targets", "search", "measure", "report", "engine"}
        assert not {n for n in inside if n.startswith("techniques.") and n != own}
    if room == "targets":
        assert not rooms & {"techniques", "search", "measure", "report", "engine", "compiling"}
        assert not {n for n in inside if n.startswith("targets.") and n != own and not n.startswith("targets._")}
    if room == "measure":
        assert not rooms & {"techniques", "search", "report", "engine", "compiling"}
    if room == "diagnosis":  # techniques and targets reach it through the registry alone
        assert not rooms & {"techniques", "targets", "search", "report", "engine", "serve", "compiling"}
    if room not in ("diagnosis", "cli", "__init__"):
        assert "diagnosis" not in rooms


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_loading_needs_no_torch(path: Path) -> None:
    own = _module(path)
    if any(own == name or own.startswith(f"{name}.") for name in TORCH_FREE):
        assert not {name for name in _imports(path, top_level_only=True) if name.split(".")[0] == "torch"}


def test_the_face_is_imported_lazily() -> None:
    import subprocess

    # torch takes seconds; rich is what `serve` need not wait for.
    code = "import sys, hasten, hasten.artifact, hasten.cli; print({'torch', 'rich'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            length = (node.end_lineno or 0) - first.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"


def _told(path: Path) -> list[tuple[int, str]]:
    """Lines that say something, with their numbers."""
    lines = ((number, line.strip()) for number, line in enumerate(path.read_text().splitlines(), 1))
    thin = re.compile(r"(#|import |from |\W*$)")
    return [(number, line) for number, line in lines if not thin.match(line)]


def test_no_run_of_lines_is_repeated() -> None:
    seen: dict[tuple[str, ...], tuple[str, int]] = {}
    repeated: dict[tuple[str, str], str] = {}
    for path in FILES:
        told = _told(path)
        for start in range(len(told) - LONGEST_REPEAT):
            run = told[start : start + LONGEST_REPEAT + 1]
            first, number = seen.setdefault(tuple(line for _, line in run), (_module(path), run[0][0]))
            if (first, number) != (_module(path), run[0][0]):
                where = f"{first} from line {number}, {_module(path)} from line {run[0][0]}"
                repeated.setdefault((first, _module(path)), where)
    unexplained = [where for pair, where in repeated.items() if pair not in REPEATED]
    assert not unexplained, "write it once, or say in REPEATED why not"
    assert set(REPEATED) <= set(repeated), "REPEATED explains what is not repeated"
