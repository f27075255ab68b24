"""Runs one variant of one peer inside the peer's environment: `python -P run_peer.py PEER.py VARIANT JOB.json`.

Writes `result.json` beside the job: what the program needs to run, what the tool cost, and the lines a user writes.
"""

import ast
import importlib.util
import inspect
import json
import re
import resource
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any


def load(name: str, path: Path) -> ModuleType:
    """A module from a file, without its folder on the path: a peer's file may be called like its package."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def lines_of(peer: ModuleType, variant: str) -> int:
    """Lines of code of a variant and of the peer's own functions and classes that it uses.

    Counted after `ast.unparse`, without comments and docstrings, so that no layout wins.
    """
    parts = {
        node.name: node
        for node in ast.parse(inspect.getsource(peer)).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    wanted, found = [peer.VARIANTS[variant].__name__], set()
    while wanted:
        name = wanted.pop()
        if name in parts and name not in found:
            found.add(name)
            wanted += [node.id for node in ast.walk(parts[name]) if isinstance(node, ast.Name)]
    return sum(_count(parts[name]) for name in found)


def _count(part: Any) -> int:
    for node in ast.walk(part):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return sum(1 for line in ast.unparse(part).splitlines() if line.strip())


def cpu_s() -> float:
    """Processor time of this process and of its children that have ended."""
    parts = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in parts)


def peak_bytes() -> int:
    """Peak resident memory of this process; `getrusage` would start at the memory of the process that forked it."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    """Run the variant and write `result.json`; returns the exit code."""
    peer_path, variant, job_path = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    job_module = load("hasten_bench_job", Path(__file__).with_name("job.py"))
    fields = json.loads(job_path.read_text())
    job = job_module.Job(Path(fields["workload"]), Path(fields["out"]), fields["threads"], fields["minutes"])
    peer = load("hasten_bench_peer", peer_path)
    started = time.perf_counter()
    try:
        program = peer.VARIANTS[variant](job)
        result: dict[str, Any] = {"program": program}
    except Exception as error:
        traceback.print_exc()
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # some colour their messages
        first = (plain.strip().splitlines() or [""])[0]
        result = {"failure": f"{type(error).__name__}: {first[:300]}"}
    result["tool_s"] = time.perf_counter() - started
    result["tool_cpu_s"] = cpu_s()
    result["tool_peak_bytes"] = peak_bytes()
    result["lines"] = lines_of(peer, variant)
    scratch = job_path.with_name(".result.json")
    scratch.write_text(json.dumps(result))
    scratch.rename(job_path.with_name("result.json"))
    return 1 if "failure" in result else 0


if __name__ == "__main__":
    raise SystemExit(main())
