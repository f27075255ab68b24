"""What hasten is installed with: components, licences, pinned hashes, known holes; kept for docs/reliability.md.

    python benchmarks/supply.py --tools .venv-tools/bin --python .venv/bin/python

The tools are those of `.ci/tools.txt`, as `make sbom` and `make audit` install them. What could not be asked is kept
as not run, with the tool's own last words.
"""

import argparse
import json
import re
import subprocess
import tempfile
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from reliability import ROOT, store

# What asks more of whoever ships it than to name its authors.
_RECIPROCAL = ("GPL", "MPL", "Mozilla", "CDDL", "EPL", "Eclipse", "UNKNOWN", "Proprietary", "LicenseRef", "-NC-")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(x) for x in command], cwd=ROOT, capture_output=True, text=True, check=False)


def components(tools: Path, python: Path) -> int:
    """Number of components in the bill of materials."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "sbom.json"
        options = ("--pyproject", "pyproject.toml", "--output-reproducible", "--output-file", out)
        run(tools / "cyclonedx-py", "environment", *options, python).check_returncode()
        return len(json.loads(out.read_text())["components"])


def licences(tools: Path, python: Path) -> tuple[dict[str, int], dict[str, str]]:
    """How many packages have each licence, and the packages whose licence asks for more than naming authors."""
    done = run(tools / "pip-licenses", "--python", python, "--format", "json", "--from", "mixed")
    done.check_returncode()
    found = {row["Name"]: " ".join(row["License"].split())[:60] for row in json.loads(done.stdout)}
    asking = {name: x for name, x in sorted(found.items()) if any(word in x for word in _RECIPROCAL)}
    return dict(Counter(found.values()).most_common()), asking


def audit(tools: Path) -> dict[str, Any]:
    """Known holes of what `constraints.txt` pins, or why they could not be asked for."""
    service = ("--vulnerability-service", "osv", "--no-deps", "--disable-pip", "--progress-spinner", "off")
    done = run(tools / "pip-audit", "--strict", *service, "--format", "json", "--requirement", "constraints.txt")
    try:
        rows = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        words = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        cause = re.search(r"Failed to resolve '[^']*'", words)
        return {"ran": False, "why": cause[0] if cause else words[-120:]}
    return {"ran": True, "packages": len(rows), "holes": [f"{x['name']} {v['id']}" for x in rows for v in x["vulns"]]}


def newest() -> dict[str, Any]:
    """What PyPI itself lists about those pinned packages whose pin is their newest version; of no other can it be asked
    about without a package's own page of that version.
    """
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line]
    with ThreadPoolExecutor(8) as pool:
        pages = list(pool.map(lambda pin: _page(pin[0]), pins))
    same = {n: page for (n, pin), page in zip(pins, pages, strict=True) if page.get("info", {}).get("version") == pin}
    holes = [f"{name} {hole['id']}" for name, page in same.items() for hole in page["vulnerabilities"]]
    return {"pinned": len(pins), "newest": len(same), "holes": holes}


def _page(name: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"https://pypi.org/pypi/{name}/json", timeout=20) as answer:
            page: dict[str, Any] = json.load(answer)
            return page
    except OSError:
        return {}


def hashes() -> dict[str, int]:
    """How many packages `requirements-test.txt` pins, and with how many hashes."""
    text = (ROOT / "requirements-test.txt").read_text()
    pinned = sum("==" in line and not line.startswith((" ", "#")) for line in text.splitlines())
    return {"pinned": pinned, "hashes": text.count("--hash=sha256:")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", type=Path, default=ROOT / ".venv-tools" / "bin")
    parser.add_argument("--python", type=Path, default=ROOT / ".venv" / "bin" / "python")
    arguments = parser.parse_args()
    kinds, asking = licences(arguments.tools, arguments.python)
    found: dict[str, Any] = {"components": components(arguments.tools, arguments.python), "licences": kinds}
    found |= {"asking": asking, "audit": audit(arguments.tools), "newest": newest(), **hashes()}
    store("supply", found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
