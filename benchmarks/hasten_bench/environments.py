"""One virtual environment for each peer, made from its pinned list and kept between runs.

PyTorch is large and the same for all, so it lies once in a base environment; a peer's environment sees it through a
`.pth` file, and what the peer installs itself comes first on its path.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from hasten.errors import HastenError

# The handed-over work needs these in every environment: tensors, weights, and one network that is a package.
BASE = ("torch==2.13.0", "numpy==2.4.6", "safetensors==0.8.0", "efficientnet-lite-pytorch==0.1.0", "setuptools==81.0.0")
CONSTRAINTS = Path(__file__).with_name("constraints.txt")
INSTALL_SECONDS = 1200


class InstallFailed(HastenError):
    """A peer's packages cannot be installed here; the message is pip's."""


def root() -> Path:
    """Where environments lie: `$HASTEN_BENCH_VENVS`, else `.venvs` in the current folder."""
    return Path(os.environ.get("HASTEN_BENCH_VENVS", ".venvs")).resolve()


def python_for(name: str, requirements: tuple[str, ...]) -> Path:
    """The interpreter of a peer's environment, made if it is not there or its pinned list has changed.

    Args:
        name: The peer's name, the name of the environment's folder.
        requirements: Pinned requirements; empty: the peer runs where the harness runs.

    Raises:
        InstallFailed: pip refused; the refusal is remembered until the list changes.
    """
    if not requirements:
        return Path(sys.executable)
    base = _ensure("base", BASE, None)
    return _ensure(name, requirements, base)


def frozen(python: Path) -> list[str]:
    """`pip freeze --all` of an environment and of the base under it."""
    done = subprocess.run(
        [str(python), "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=False
    )
    return sorted(line for line in done.stdout.splitlines() if "==" in line)


def _ensure(name: str, requirements: tuple[str, ...], base: Path | None) -> Path:
    folder = root() / name
    python, record = folder / "bin" / "python", root() / f"{name}.json"
    wanted = _fingerprint(requirements)
    known = json.loads(record.read_text()) if record.exists() else {}
    if known.get("wanted") == wanted:
        if known["error"]:
            raise InstallFailed(known["error"])
        if python.exists():
            return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    error = _make(folder, requirements, base, folder.parent / f"{name}.log")
    record.write_text(json.dumps({"wanted": wanted, "requirements": requirements, "error": error}, indent=2))
    if error:
        shutil.rmtree(folder, ignore_errors=True)
        raise InstallFailed(error)
    return python


def _make(folder: Path, requirements: tuple[str, ...], base: Path | None, log: Path) -> str:
    """Make an environment; returns what went wrong, or an empty string."""
    python = folder / "bin" / "python"
    with log.open("w") as sink:
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], stdout=sink, stderr=sink, check=True)
            if base is not None:
                _site_packages(folder).joinpath("base.pth").write_text(f"{_site_packages(base.parent.parent)}\n")
            command = [str(python), "-m", "pip", "install", "--prefer-binary", "-c", str(CONSTRAINTS), *requirements]
            done = subprocess.run(command, stdout=sink, stderr=sink, timeout=INSTALL_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return f"pip found no set of packages within {INSTALL_SECONDS // 60} minutes"
    return "" if done.returncode == 0 else _reason(log.read_text(errors="replace"))


def _reason(log: str) -> str:
    errors = [line.strip() for line in log.splitlines() if line.lstrip().startswith(("ERROR:", "error:"))]
    text = errors[0] if errors else (log.strip().splitlines() or ["pip failed without a word"])[-1]
    return text.removeprefix("ERROR:").strip()[:300]


def _site_packages(folder: Path) -> Path:
    return next((folder / "lib").glob("python*")) / "site-packages"


def _fingerprint(requirements: tuple[str, ...]) -> str:
    content = json.dumps([sorted(requirements), CONSTRAINTS.read_text(), sys.version_info[:2]])
    return hashlib.sha256(content.encode()).hexdigest()
