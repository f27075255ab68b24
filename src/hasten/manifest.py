"""Read what an artifact says of itself, believing nothing: every size is bounded and every name is checked first.

Artifacts come from strangers too. Nothing here allocates by a number in a file before the file is that large.
"""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from hasten.errors import InvalidInput

SCHEMA = 1
MANIFEST = "manifest.json"
_LIMIT_BYTES = 4 * 2**20


def read_json(path: Path) -> Any:
    """The JSON document in a file of at most 4 MiB.

    Raises:
        InvalidInput: Not a file, too large, or not JSON.
    """
    if not path.is_file():
        raise InvalidInput(f"{path} must be a file, but is not.")
    if path.stat().st_size > _LIMIT_BYTES:
        raise InvalidInput(f"{path} must be at most {_LIMIT_BYTES} bytes, but has {path.stat().st_size}.")
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} must be valid JSON, but: {error}") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact, of this schema and well formed.

    Raises:
        InvalidInput: There is none, or it is not one.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise InvalidInput(f"An artifact must be a folder with a {MANIFEST}, but {folder} has none.")
    manifest = read_json(path)
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
    if (
        not isinstance(value, dict)
        or not isinstance(value.get("shape"), list)
        or (named and not isinstance(value.get("name"), str))
    ):
        return False
    sizes = all(x is None or (isinstance(x, int) and x >= 0) for x in value["shape"])
    return sizes and value.get("dtype") in _DTYPES


_DTYPES = ("float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")


def check_files(folder: Path, manifest: dict[str, Any], besides: Collection[str] = ()) -> None:
    """Raise `InvalidInput` unless `folder` holds the manifest's files, unchanged, and nothing else but `besides`."""
    listed = dict(manifest["files"])
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            raise InvalidInput(f"{folder} must hold no links, but {name} is one.")
        if not path.is_dir() and not path.is_file():
            raise InvalidInput(f"{folder} must hold plain files only, but {name} is none.")
        if path.is_dir() or name in (MANIFEST, *besides):
            continue
        if name not in listed:
            raise InvalidInput(f"{folder} must hold only the files of its manifest, but also has {name}.")
        if sha256_of(path) != listed.pop(name):
            raise InvalidInput(f"{folder} must be as it was written, but {name} has another SHA-256. It was changed.")
    if listed:
        raise InvalidInput(f"{folder} must hold every file of its manifest, but {sorted(listed)[0]} is missing.")


def read_arrays(folder: Path, stem: str, count: int) -> list[np.ndarray]:
    """`stem`_0.npy, `stem`_1.npy, ... in `folder`.

    Raises:
        InvalidInput: One is missing or is not an array.
    """
    return [_read_npy(folder / f"{stem}_{index}.npy") for index in range(count)]


def _read_npy(path: Path) -> np.ndarray:
    try:
        # Mapped, so that a header which promises more than the file holds allocates nothing.
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception as error:  # numpy parses the header as Python's literals and lets the tokenizer's errors through
        raise InvalidInput(f"{path} must hold an array, but: {error!s:.200}") from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
