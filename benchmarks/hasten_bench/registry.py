"""The peers: every file in `peers/` is one, its name is the peer's name.

A peer states `REQUIREMENTS` (pinned), `TITLE`, `VARIANTS` (name to function of a Job) and `KINDS` (which kinds of work
a variant is for); where it applies, `NEEDS_VALIDATION` and `NEEDS_TRAINING` (variants that need those rows), `SLOW`
(variants left out of a quick run) and `BUDGETED` (variants that spend `job.minutes`). Its functions import the peer's
packages when called, so that the file can be read in any environment.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from hasten.errors import unknown
from hasten_bench.workloads import Workload

FOLDER = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Peer:
    """One file of `peers/`."""

    name: str
    title: str
    path: Path
    requirements: tuple[str, ...]
    variants: tuple[str, ...]
    kinds: dict[str, tuple[str, ...]]
    needs_rows: tuple[str, ...]
    slow: tuple[str, ...] = ()
    budgeted: tuple[str, ...] = ()

    def asked_for(self, workload: Workload, quick: bool = False) -> list[str]:
        """The variants that make sense on a workload; the slow ones not in a quick run."""
        return [
            variant
            for variant in self.variants
            if workload.kind in self.kinds[variant]
            and (workload.trained or variant not in self.needs_rows)
            and not (quick and variant in self.slow)
        ]


def peers() -> dict[str, Peer]:
    """Every peer by name; eager PyTorch, the baseline, first, then hasten."""
    names = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
    names.sort(key=lambda name: (name != "eager", name != "hasten", name))
    return {name: _read(name) for name in names}


def peer(name: str) -> Peer:
    """The peer called `name`; raises `InvalidInput` with the nearest names."""
    known = peers()
    if name not in known:
        raise unknown("peer", name, known)
    return known[name]


def _read(name: str) -> Peer:
    path = FOLDER / f"{name}.py"
    # Not imported by its own name: `peers/nncf.py` must never stand in for the package it measures.
    spec = importlib.util.spec_from_file_location(f"hasten_bench_peer_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    needs = (*getattr(module, "NEEDS_VALIDATION", ()), *getattr(module, "NEEDS_TRAINING", ()))
    return Peer(
        name,
        module.TITLE,
        path,
        module.REQUIREMENTS,
        tuple(module.VARIANTS),
        module.KINDS,
        needs,
        getattr(module, "SLOW", ()),
        getattr(module, "BUDGETED", ()),
    )
