"""Results on disk: one JSON document per run, with everything that is needed to judge or repeat it."""

import datetime
import hashlib
import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hasten.machine import fingerprint
from hasten_bench.material import REPOSITORY
from hasten_bench.settings import Settings

SCHEMA = 1
FOLDER = REPOSITORY / "benchmarks" / "results"


def provenance(command: list[str], settings: Settings) -> dict[str, Any]:
    """Device, versions, commit, command, settings, and how busy the machine was."""
    return circumstances() | {
        "schema": SCHEMA,
        "command": command,
        "settings": asdict(settings),
        "device": fingerprint(),
        "harness_sha256": _harness(),
    }


def circumstances() -> dict[str, Any]:
    """When, at which commit, and how busy the machine was."""
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", "src", "benchmarks/hasten_bench")),
        "load_average_at_start": load_average(),
    }


def load_average() -> list[float]:
    """Processes that wanted a core over the last 1, 5 and 15 minutes; beyond the cores, timings are rough."""
    return [round(x, 2) for x in os.getloadavg()]


def write(document: dict[str, Any], path: Path) -> None:
    """Write a document whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}")
    scratch.write_text(json.dumps(document, indent=1) + "\n")
    scratch.rename(path)


def read_all(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Every document of the folder, oldest first."""
    read = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    documents = [found | {"file": name} for name, found in read.items() if isinstance(found, dict)]
    return sorted((d for d in documents if d.get("schema") == SCHEMA), key=lambda d: d["started"])


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _harness() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
