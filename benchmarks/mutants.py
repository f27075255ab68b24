"""Change one operator or number in hasten's arithmetic and see whether a test notices: mutation testing by sample.

    python benchmarks/mutants.py --map                           # once: which test runs which line
    python benchmarks/mutants.py --count 150
    python benchmarks/mutants.py --count 150 --only 17,42        # these again, after a test was added
    python benchmarks/mutants.py --count 30 --seed 1 --out benchmarks/results/mutants_fresh.json

Mutants are drawn evenly from every place in `FILES` where `_places` finds one, seeded, so that a sample can be
drawn again. Each is tried on a copy of the source in a process of its own, against the tests of its room (`ROOMS`)
that run its line, the quickest first, until one fails. A line that runs at import or in a process of its own belongs to
no test: there all of the room are tried; one that never runs survives. What no test notices is listed; some of it
cannot be noticed: it computes the same. Where tests were added because of a sample, only a fresh one tells how many
are noticed.
"""

import argparse
import ast
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SOURCE, TESTS = ROOT / "src" / "hasten", ROOT / "tests"
RESULTS = Path(__file__).parent / "results" / "mutants.json"
FILES = (
    "graph/**/*.py",
    "measure/*.py",
    *(
        f"quantization/{name}.py"
        for name in ("affine", "fixed_point", "histogram", "integer_reference", "linear", "logarithmic", "observers",
                     "ranges", "rounding", "saturation", "statistics", "weights")
    ),
)  # fmt: skip
ROOMS = {
    "graph": ["tests/graph", "tests/pruning", "tests/techniques", "tests/test_fused.py", "tests/engine/test_split.py"],
    "measure": ["tests/measure", "tests/search/test_folder.py"],
    "quantization": ["tests/quantization", "tests/techniques"],
}
MAP = ROOT / "runs" / "mutants" / "lines"
LIMIT_S, HANGS_S = 900, 3600

_BINARY = {ast.Add: "-", ast.Sub: "+", ast.Mult: "+", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*", ast.Pow: "*"}
_SIGNS = {"-": r"\+", "+": r"-|\*(?!\*)", "*": r"//?|%|\*\*"}
_COMPARED = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"), ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change: `old` at (line, column) of a file becomes `new`."""

    file: str
    line: int
    start: int
    end: int
    old: str
    new: str


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every change to a file that leaves it valid Python."""
    text = path.read_text()
    lines = text.splitlines()
    name = str(path.relative_to(SOURCE))
    for node in _changed_nodes(ast.parse(text)):
        for line, start, end, new in _places(node, lines):
            old = lines[line - 1].encode()[start:end].decode()
            if old and old != new:
                yield Mutant(name, line, start, end, old, new)


def _changed_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that compute: no messages, annotations, default arguments or what only runs for a type checker."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(
            node, (ast.JoinedStr, ast.Raise, ast.Assert, ast.Import, ast.ImportFrom, ast.ClassDef | ast.arguments)
        ):
            if isinstance(node, ast.ClassDef):
                yield from _changed_nodes(node)
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.AnnAssign):
            if node.value is not None:
                yield node.value
                yield from _changed_nodes(node.value)
            continue
        if isinstance(node, ast.FunctionDef):
            for part in node.body:
                yield part
                yield from _changed_nodes(part)
            continue
        yield node
        yield from _changed_nodes(node)


def _places(node: ast.AST, lines: list[str]) -> Iterator[tuple[int, int, int, str]]:
    """(line, first and last byte, replacement) of what can be changed about a node itself."""
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        new = _BINARY[type(node.op)]
        yield from _between(node.left, node.right, _SIGNS[new], new, lines)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARED:
        old, new = _COMPARED[type(node.ops[0])]
        yield from _between(node.left, node.comparators[0], re.escape(old), new, lines)
    elif isinstance(node, ast.BoolOp):
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield from _between(left, right, rf"\b{old}\b", new, lines)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        length = len("not ") if isinstance(node.op, ast.Not) else len("-")
        yield node.lineno, node.col_offset, node.col_offset + length, ""
    elif isinstance(node, ast.Constant) and node.end_col_offset is not None:
        where = node.lineno, node.col_offset, node.end_col_offset
        if node.value is True or node.value is False:
            yield *where, str(not node.value)
        elif isinstance(node.value, int):
            yield *where, str(node.value + 1)
        elif isinstance(node.value, float):
            yield *where, repr(node.value * 2 + 1)


def _between(
    left: ast.expr, right: ast.expr, old: str, new: str, lines: list[str]
) -> Iterator[tuple[int, int, int, str]]:
    """The operator between two operands that stand on one line."""
    if left.end_lineno != right.lineno or left.end_col_offset is None:
        return
    gap = lines[right.lineno - 1].encode()[left.end_col_offset : right.col_offset].decode()
    if match := re.search(old, gap):
        at = left.end_col_offset
        yield right.lineno, at + match.start(), at + match.end(), new


def make_map() -> None:
    """Run every test of the rooms once, alone, and keep which lines it runs and how long it takes."""
    MAP.parent.mkdir(parents=True, exist_ok=True)
    took: dict[str, float] = {}
    tests = sorted({test for room in ROOMS.values() for test in room})
    options = ["-q", "-m", "not slow and not stack", "-p", "no:cacheprovider", "--durations=0", "--durations-min=0"]
    options += ["--cov=hasten", "--cov-context=test", "--cov-report="]
    environment = {**os.environ, "HASTEN_FUZZ": "20", "COVERAGE_FILE": str(MAP)}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT / "src", ROOT / "benchmarks", TESTS)))
    command = [sys.executable, "-m", "pytest", *options, *tests]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"The tests must pass on the source as it is, but do not:\n{done.stdout[-4000:]}")
    for seconds, test in re.findall(r"^([\d.]+)s (?:call|setup) +(\S.*)$", done.stdout, re.MULTILINE):
        took[test] = took.get(test, 0.0) + float(seconds)
    MAP.with_suffix(".json").write_text(json.dumps(took))


def tests_of(mutant: Mutant) -> list[str]:
    """The tests that run its line, the quickest first; all of its room where it runs, but in no test; else none."""
    from coverage import CoverageData

    took: dict[str, float] = json.loads(MAP.with_suffix(".json").read_text())
    data = CoverageData(str(MAP))
    data.read()
    room = ROOMS[mutant.file.split("/")[0]]
    mine = tuple(room)
    contexts = data.contexts_by_lineno(str(SOURCE / mutant.file)).get(mutant.line, [])
    found = {context.split("|")[0] for context in contexts if context}
    found = {test for test in found if test.startswith(mine) and test in took}
    return sorted(found, key=took.__getitem__) or (room if contexts else [])


def survives(mutant: Mutant, tests: list[str]) -> bool:
    """Whether no test notices a change; one that makes a test never end is noticed."""
    if not tests:
        return True
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "hasten"
        shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))
        path = source / mutant.file
        lines = path.read_text().splitlines(keepends=True)
        line = lines[mutant.line - 1].encode()
        lines[mutant.line - 1] = (line[: mutant.start] + mutant.new.encode() + line[mutant.end :]).decode()
        path.write_text("".join(lines))
        environment = {**os.environ, "HASTEN_FUZZ": "20", "PYTHONDONTWRITEBYTECODE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([scratch, str(ROOT / "benchmarks"), str(TESTS)])
        return _passes(tests, environment)


def _passes(tests: list[str], environment: dict[str, str]) -> bool:
    options = ["-x", "-q", "-m", "not slow and not stack", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    quiet = subprocess.DEVNULL
    # Seconds of a processor, not of the clock: a busy machine must not make a mutant look noticed.
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=quiet,
        stderr=quiet,
        start_new_session=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S)),
    )
    try:
        return process.wait(HANGS_S) in (0, 5)  # 5: every test was deselected
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="numbers of the sample to try, separated by commas")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--map", action="store_true", help="find which test runs which line, and end")
    arguments = parser.parse_args()
    if arguments.map:
        make_map()
        return
    if not MAP.exists():
        raise SystemExit("Which test runs which line is not known yet: run this with --map first.")
    places = [m for pattern in FILES for path in sorted(SOURCE.glob(pattern)) for m in mutants_of(path)]
    sample = random.Random(arguments.seed).sample(places, arguments.count)
    wanted = [int(x) for x in arguments.only.split(",") if x] or range(len(sample))
    out: Path = arguments.out
    found: dict[str, Any] = json.loads(out.read_text())["mutants"] if out.exists() and arguments.only else {}
    for number in wanted:
        began = time.monotonic()
        alive = survives(sample[number], tests_of(sample[number]))
        found[str(number)] = asdict(sample[number]) | {"survived": alive}
        about = {"places": len(places), "drawn": arguments.count, "seed": arguments.seed}
        out.write_text(json.dumps(about | {"mutants": found}, indent=1) + "\n")
        where = f"{sample[number].file}:{sample[number].line}: {sample[number].old} -> {sample[number].new}"
        print(f"{number} {'SURVIVED' if alive else 'killed'} {where} ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
