"""The folder that ships: write it, verify it, load it. Imports no torch, executes nothing from the folder.

Layout: `manifest.json` (schema, target and options, inputs and outputs, SHA-256 of every other file), the target's own
files, `recipe.yaml`, `certificate.json`, `measurements.json`, and `check_input_*.npy` / `check_output_*.npy`, which
`verify` reruns.
"""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from hasten import seal
from hasten.errors import HastenError, InvalidInput
from hasten.machine import fingerprint
from hasten.manifest import MANIFEST, SCHEMA, check_files, read_arrays, read_json, read_manifest, sha256_of
from hasten.recipe import Program, Recipe, Target, make_target, name_of, options_of

# Runtimes may round differently on another processor; a wrong program differs by far more.
_TOLERANCE = 0.01


@dataclass(frozen=True)
class Artifact:
    """A compiled model in a folder, with how it was made, what it was measured at, and its certificate."""

    path: Path

    @property
    def manifest(self) -> dict[str, Any]:
        """The checked manifest; raises `InvalidInput` if it is not one."""
        return read_manifest(self.path)

    @property
    def certificate(self) -> dict[str, Any] | None:
        """The certificate, or None if the artifact was compiled by hand."""
        return self._json("certificate.json")

    @property
    def measurements(self) -> dict[str, Any] | None:
        """Latency, throughput, size and memory with the device they were taken on, or None."""
        return self._json("measurements.json")

    def save(self, path: str | os.PathLike[str]) -> "Artifact":
        """Copy the artifact to `path`, which must not exist yet; it appears there complete or not at all.

        Raises:
            InvalidInput: Not an artifact, changed since it was written, or `path` exists or cannot be written.
        """
        goal = Path(path)
        check_free(goal)
        check_files(self.path, self.manifest, besides={seal.SEAL})
        with _appearing(goal) as scratch:
            # A link that came meanwhile stays one, and is refused by whoever loads the copy.
            shutil.copytree(self.path, scratch, symlinks=True, dirs_exist_ok=True)
        return Artifact(goal)

    def load(self) -> "LoadedProgram":
        """Check the hashes and load the program."""
        return load(self.path)

    def _json(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        return read_json(path) if os.path.lexists(path) else None


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
    check_free(out)
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
            "files": {str(f.relative_to(folder)): sha256_of(f) for f in sorted(folder.rglob("*")) if f.is_file()},
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))
        if runs_native_code(recipe.target):
            seal.write(folder)
    return Artifact(out)


def runs_native_code(target: Target) -> bool:
    """Whether loading this target's files runs machine code that they hold."""
    return bool(getattr(target, "native_code", False))


def open_target(
    path: str | os.PathLike[str], *, options: Mapping[str, Any] | None = None, trust_code: bool = False
) -> tuple[dict[str, Any], Target]:
    """The manifest and the target of an artifact whose every file has been checked; nothing is loaded yet.

    Raises:
        InvalidInput: As `load` says.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    check_files(folder, manifest, besides={seal.SEAL})
    target = make_target(manifest["target"]["name"], manifest["target"]["options"])
    if runs_native_code(target) and not (trust_code or seal.trusted_by_environment() or seal.is_own(folder)):
        raise InvalidInput(
            f"{folder} holds machine code, which loading it runs, and was not made by this user on this machine. If "
            f"you trust whoever made it, load it with trust_code=True or set {seal.TRUST_VARIABLE}=1."
        )
    known = options_of(target)
    target = dataclasses.replace(
        cast(Any, target), **{key: value for key, value in (options or {}).items() if key in known}
    )
    if missing := target.missing():
        raise InvalidInput(f"The artifact {folder} needs {manifest['target']['name']}, which needs: {missing}")
    return manifest, target


def load(
    path: str | os.PathLike[str], *, options: Mapping[str, Any] | None = None, trust_code: bool = False
) -> LoadedProgram:
    """Load an artifact after checking every hash; torch is imported only if its target runs on torch.

    Args:
        path: The artifact's folder.
        options: Options of its target to load it with instead of those it was compiled with, such as `threads`; those
            that the target does not have are left out.
        trust_code: Load machine code that this user did not make on this machine (targets such as `inductor`).

    Raises:
        InvalidInput: Not an artifact, changed since it was written, its target is not usable here, or it holds machine
            code from elsewhere that is not trusted.
    """
    manifest, target = open_target(path, options=options, trust_code=trust_code)
    try:
        program = target.load(Path(path))
    except HastenError:
        raise
    except Exception as error:  # every runtime has its own way to say that a file is not one of its own
        raise InvalidInput(
            f"{path} must hold a program that {name_of(target)} can load, but: {type(error).__name__}: {error!s:.300}"
        ) from error
    return LoadedProgram(manifest, program)


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
    inputs = read_arrays(folder, "check_input", len(manifest["inputs"]))
    stored = read_arrays(folder, "check_output", len(manifest["outputs"]))
    try:
        found = program(*inputs)
    except HastenError:
        raise
    except Exception as error:  # a runtime's own
        raise InvalidInput(f"{folder} must answer its stored inputs, but its runtime failed: {error}") from error
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


def check_free(goal: Path) -> None:
    """Raise `InvalidInput` if there is anything where an artifact is to be written."""
    if os.path.lexists(goal):
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
            try:
                self._scratch.rename(self._goal)
            except OSError as error:  # another process was there first
                shutil.rmtree(self._scratch, ignore_errors=True)
                check_free(self._goal)
                raise InvalidInput(f"{self._goal} must be a name that can be written, but: {error}") from error
        else:
            shutil.rmtree(self._scratch, ignore_errors=True)
