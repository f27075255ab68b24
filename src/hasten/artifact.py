"""The folder that ships: write it, verify it, load it. Imports no torch, executes nothing from the folder.

Layout: `manifest.json` (schema, target and options, inputs and outputs, SHA-256 of every other file), the target's own
files, `recipe.yaml`, `certificate.json`, `measurements.json`, and `check_input_*.npy` / `check_output_*.npy`, which
`verify` reruns.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from hasten.errors import InvalidInput
from hasten.machine import fingerprint
from hasten.recipe import Program, Recipe, make_target, name_of, options_of

SCHEMA = 1
_MANIFEST = "manifest.json"
_MANIFEST_LIMIT_BYTES = 4 * 2**20
# Runtimes may round differently on another processor; a wrong program differs by far more.
_TOLERANCE = 0.01


@dataclass(frozen=True)
class Artifact:
    """A compiled model in a folder, with how it was made, what it was measured at, and its certificate."""

    path: Path

    @property
    def manifest(self) -> dict[str, Any]:
        """The checked manifest; raises `InvalidInput` if it is not one."""
        return _read_manifest(self.path)

    @property
    def certificate(self) -> dict[str, Any] | None:
        """The certificate, or None if the artifact was compiled by hand."""
        return self._json("certificate.json")

    @property
    def measurements(self) -> dict[str, Any] | None:
        """Latency, throughput, size and memory with the device they were taken on, or None."""
        return self._json("measurements.json")

    def save(self, path: str | os.PathLike[str]) -> "Artifact":
        """Copy the artifact to `path`, which must not exist yet; it appears there complete or not at all."""
        goal = Path(path)
        _check_free(goal)
        with _appearing(goal) as scratch:
            shutil.copytree(self.path, scratch, dirs_exist_ok=True)
        return Artifact(goal)

    def load(self) -> "LoadedProgram":
        """Check the hashes and load the program."""
        return load(self.path)

    def _json(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        return json.loads(path.read_text()) if path.exists() else None


class LoadedProgram:
    """A loaded artifact: call it with one array per input, batch first; returns a tuple of numpy arrays."""

    def __init__(self, manifest: dict[str, Any], program: Program) -> None:
        self.manifest = manifest
        self._inputs = [(x["name"], np.dtype(x["dtype"]), tuple(x["shape"])) for x in manifest["inputs"]]
        self._program = program

    def __call__(self, *inputs: Any) -> tuple[np.ndarray, ...]:
        """Run the program.

        Args:
            inputs: Arrays (or CPU tensors) with the manifest's dtypes and shapes; a None in a shape is any size.

        Raises:
            InvalidInput: An input has the wrong number, dtype or shape.
        """
        if len(inputs) != len(self._inputs):
            names = ", ".join(name for name, _, _ in self._inputs)
            raise InvalidInput(f"The program takes {len(self._inputs)} inputs ({names}), but got {len(inputs)}.")
        arrays = [self._checked(np.asarray(x), *spec) for x, spec in zip(inputs, self._inputs, strict=True)]
        return self._program(*arrays)

    @staticmethod
    def _checked(x: np.ndarray, name: str, dtype: np.dtype, shape: tuple[int | None, ...]) -> np.ndarray:
        if x.dtype != dtype:
            raise InvalidInput(f"Input {name!r} must have dtype {dtype}, but got {x.dtype}. Cast it.")
        fits = x.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, x.shape, strict=True))
        if not fits:
            raise InvalidInput(f"Input {name!r} must have shape {list(shape)} (None: any), but got {list(x.shape)}.")
        return np.ascontiguousarray(x)


def write(
    out: Path,
    compiled: Path,
    recipe: Recipe,
    inputs: Sequence[Mapping[str, Any]],
    check_inputs: Sequence[np.ndarray],
    check_outputs: Sequence[np.ndarray],
    *,
    certificate: Mapping[str, Any] | None = None,
    measurements: Mapping[str, Any] | None = None,
) -> Artifact:
    """Write an artifact to `out` under a temporary name and rename it into place.

    Args:
        out: The folder to make; must not exist.
        compiled: What the target's `compile` wrote.
        recipe: How the program was made.
        inputs: Name, dtype and shape (None for any size) of every input.
        check_inputs: Real inputs for `verify`, one array per input.
        check_outputs: What the program answered to them.
        certificate: The certificate, if one was made.
        measurements: What was measured, if anything was.

    Raises:
        InvalidInput: `out` exists already, or cannot be written.
    """
    _check_free(out)
    with _appearing(out) as folder:
        shutil.copytree(compiled, folder, dirs_exist_ok=True)
        (folder / "recipe.yaml").write_text(recipe.to_yaml())
        for name, document in (("certificate.json", certificate), ("measurements.json", measurements)):
            if document is not None:
                (folder / name).write_text(json.dumps(document, indent=2))
        for kind, arrays in (("input", check_inputs), ("output", check_outputs)):
            for index, array in enumerate(arrays):
                np.save(folder / f"check_{kind}_{index}.npy", np.ascontiguousarray(array), allow_pickle=False)
        manifest = {
            "schema": SCHEMA,
            "target": {"name": name_of(recipe.target), "options": options_of(recipe.target)},
            "made_on": fingerprint(),
            "inputs": [dict(x) for x in inputs],
            "outputs": [{"dtype": str(y.dtype), "shape": [None, *y.shape[1:]]} for y in check_outputs],
            "files": {str(f.relative_to(folder)): _sha256(f) for f in sorted(folder.rglob("*")) if f.is_file()},
        }
        (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2))
    return Artifact(out)


def load(path: str | os.PathLike[str], *, options: Mapping[str, Any] | None = None) -> LoadedProgram:
    """Load an artifact after checking every hash; torch is imported only if its target runs on torch.

    Args:
        path: The artifact's folder.
        options: Options of its target to load it with instead of those it was compiled with, such as `threads`; those
            that the target does not have are left out.

    Raises:
        InvalidInput: Not an artifact, changed since it was written, or its target is not usable here.
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    _check_files(folder, manifest)
    target = make_target(manifest["target"]["name"], manifest["target"]["options"])
    known = options_of(target)
    target = dataclasses.replace(
        cast(Any, target), **{key: value for key, value in (options or {}).items() if key in known}
    )
    if missing := target.missing():
        raise InvalidInput(f"The artifact {folder} needs {manifest['target']['name']}, which needs: {missing}")
    return LoadedProgram(manifest, target.load(folder))


@dataclass(frozen=True)
class Verification:
    """What `verify` found: number of files checked, and the largest deviation of an output, relative to its range."""

    files: int
    deviation: float


def verify(path: str | os.PathLike[str]) -> Verification:
    """Re-check hashes, reload, rerun the stored inputs and compare the outputs.

    Raises:
        InvalidInput: Anything is not as it was written.
    """
    folder = Path(path)
    program = load(folder)
    manifest = program.manifest
    inputs = [_read_npy(folder / f"check_input_{i}.npy") for i in range(len(manifest["inputs"]))]
    stored = [_read_npy(folder / f"check_output_{i}.npy") for i in range(len(manifest["outputs"]))]
    found = program(*inputs)
    if [y.shape for y in found] != [y.shape for y in stored]:
        raise InvalidInput(
            f"{folder} must answer with shapes {[y.shape for y in stored]}, but gave {[y.shape for y in found]}."
        )
    deviation = max(_deviation(a, b) for a, b in zip(found, stored, strict=True))
    if not deviation <= _TOLERANCE:
        raise InvalidInput(
            f"{folder} must reproduce its stored outputs within {_TOLERANCE:.0%} of their range, "
            f"but deviates by {deviation:.2%}. The runtime here computes something else; recompile for this machine."
        )
    return Verification(len(manifest["files"]), deviation)


def _deviation(found: np.ndarray, stored: np.ndarray) -> float:
    a, b = found.astype(np.float64), stored.astype(np.float64)
    if not np.isfinite(a).all():
        return float("inf")
    return float(np.abs(a - b).max(initial=0) / (np.ptp(b) or 1.0))


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    if not path.is_file():
        raise InvalidInput(f"An artifact must be a folder with a {_MANIFEST}, but {folder} has none.")
    if path.stat().st_size > _MANIFEST_LIMIT_BYTES:
        raise InvalidInput(f"{path} must be at most {_MANIFEST_LIMIT_BYTES} bytes, but has {path.stat().st_size}.")
    try:
        manifest = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} must be valid JSON, but: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        got = manifest.get("schema") if isinstance(manifest, dict) else manifest
        raise InvalidInput(f"{path} must have schema {SCHEMA}, but has {got!r:.60}. Use the hasten that wrote it.")
    _check_manifest(path, manifest)
    return manifest


def _check_manifest(path: Path, manifest: dict[str, Any]) -> None:
    target, files = manifest.get("target"), manifest.get("files")
    well_formed = (
        isinstance(target, dict)
        and isinstance(target.get("name"), str)
        and isinstance(target.get("options"), dict)
        and isinstance(files, dict)
        and all(isinstance(k, str) and isinstance(v, str) for k, v in files.items())
        and all(_is_spec(x, named=True) for x in _list(manifest.get("inputs")))
        and all(_is_spec(x, named=False) for x in _list(manifest.get("outputs")))
        and bool(manifest.get("inputs"))
    )
    if not well_formed:
        raise InvalidInput(f"{path} must name `target`, `files`, `inputs` and `outputs`, but does not. It was changed.")
    for name in manifest["files"]:
        parts = Path(name).parts
        if Path(name).is_absolute() or ".." in parts or not parts:
            raise InvalidInput(f"{path} must list files inside the folder, but lists {name!r:.100}.")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]


def _is_spec(value: Any, named: bool) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("shape"), list) or (named and "name" not in value):
        return False
    sizes = all(x is None or (isinstance(x, int) and x >= 0) for x in value["shape"])
    return sizes and value.get("dtype") in _DTYPES


_DTYPES = {"float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"}


def _check_files(folder: Path, manifest: dict[str, Any]) -> None:
    listed = dict(manifest["files"])
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            raise InvalidInput(f"{folder} must hold no links, but {name} is one.")
        if path.is_dir() or name == _MANIFEST:
            continue
        if name not in listed:
            raise InvalidInput(f"{folder} must hold only the files of its manifest, but also has {name}.")
        if _sha256(path) != listed.pop(name):
            raise InvalidInput(f"{folder} must be as it was written, but {name} has another SHA-256. It was changed.")
    if listed:
        raise InvalidInput(f"{folder} must hold every file of its manifest, but {sorted(listed)[0]} is missing.")


def _read_npy(path: Path) -> np.ndarray:
    array: np.ndarray = np.load(path, allow_pickle=False)
    return array


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_free(goal: Path) -> None:
    if goal.exists():
        raise InvalidInput(f"The artifact's folder must not exist yet, but {goal} does. Remove it or name another.")


class _appearing:  # noqa: N801  (a context manager, used like a function)
    """A temporary sibling folder that is renamed to `goal` when the block ends well, and removed when it does not."""

    def __init__(self, goal: Path) -> None:
        self._goal = goal

    def __enter__(self) -> Path:
        try:
            self._goal.parent.mkdir(parents=True, exist_ok=True)
            self._scratch = Path(tempfile.mkdtemp(prefix=f".{self._goal.name}.", dir=self._goal.parent))
        except OSError as error:
            raise InvalidInput(f"{self._goal.parent} must be a writable folder, but: {error}") from error
        return self._scratch

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._scratch.chmod(0o755)
            self._scratch.rename(self._goal)
        else:
            shutil.rmtree(self._scratch, ignore_errors=True)
