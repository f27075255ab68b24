"""Read what an artifact says of itself, believing nothing: every size is bounded and every name is checked first.

Artifacts come from strangers too. Nothing here allocates by a number in a file before the file is that large.
"""

import hashlib
import json
import math
import os
import stat
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hasten.errors import InvalidInput

SCHEMA = 1
MANIFEST = "manifest.json"
LIMIT_BYTES = 4 * 2**20
# Far beyond any network: no size, product of sizes or number of tensors of a manifest may exceed these.
_DIMENSIONS, _ELEMENTS, _TENSORS = 32, 2**40, 1024
_FOLDERS_DEEP = 16


def read_bytes(path: Path, limit_bytes: int = LIMIT_BYTES) -> bytes:
    """The content of a plain file that is no link and has at most `limit_bytes`.

    Raises:
        InvalidInput: Not such a file, or too large.
    """
    try:
        # A pipe would otherwise wait for somebody to write into it.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise InvalidInput(f"{path} must be a file that can be read and no link, but: {what}.") from error
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise InvalidInput(f"{path} must be a plain file, but is not.")
        data = file.read(limit_bytes + 1)  # what the system states as a size need not be one
    if len(data) > limit_bytes:
        raise InvalidInput(f"{path} must be at most {limit_bytes} bytes, but has more.")
    return data


def read_json(path: Path, limit_bytes: int = LIMIT_BYTES, numbers: bool = False) -> Any:
    """The JSON document in a plain file.

    Args:
        path: The file; a link is refused.
        limit_bytes: Most bytes that it may have.
        numbers: Whether NaN and infinities, which JSON does not know, may stand in it.

    Raises:
        InvalidInput: Not a file, too large, not JSON, or JSON that says two things of one name.
    """
    data = read_bytes(path, limit_bytes)
    try:
        return json.loads(data, object_pairs_hook=_once, parse_constant=None if numbers else _refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} must be valid JSON, but: {error!s:.200}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # readers differ in which of them counts
        raise ValueError("a name stands twice in one object")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact, of this schema and well formed.

    Raises:
        InvalidInput: There is none, or it is not one.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path) and (os.access(folder, os.X_OK) or not folder.is_dir()):
        raise InvalidInput(f"An artifact must be a folder with a {MANIFEST}, but {folder} has none.")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or type(manifest.get("schema")) is not int or manifest["schema"] != SCHEMA:
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
        and _are_specs(manifest.get("inputs"), named=True)
        and _are_specs(manifest.get("outputs"), named=False)
        and bool(manifest.get("inputs"))
    )
    if not well_formed:
        raise InvalidInput(f"{path} must name `target`, `files`, `inputs` and `outputs`, but does not. It was changed.")
    names = [x["name"] for x in manifest["inputs"]]
    if len(set(names)) < len(names):
        raise InvalidInput(f"{path} must give every input a name of its own, but does not. It was changed.")
    for name in manifest["files"]:
        parts = Path(name).parts
        if Path(name).is_absolute() or ".." in parts or not parts or not name.isprintable():
            raise InvalidInput(f"{path} must list files inside the folder, but lists {name!r:.100}.")


def _are_specs(value: Any, named: bool) -> bool:
    return isinstance(value, list) and len(value) <= _TENSORS and all(_is_spec(x, named) for x in value)


def _is_spec(value: Any, named: bool) -> bool:
    if not isinstance(value, dict) or not isinstance(shape := value.get("shape"), list):
        return False
    if named and not (isinstance(value.get("name"), str) and value["name"].isprintable()):
        return False
    sizes = len(shape) <= _DIMENSIONS and all(x is None or (type(x) is int and 0 <= x <= _ELEMENTS) for x in shape)
    return sizes and math.prod(x or 1 for x in shape) <= _ELEMENTS and value.get("dtype") in _DTYPES


_DTYPES = ("float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")


def check_files(folder: Path, manifest: dict[str, Any], besides: Collection[str] = ()) -> None:
    """Raise `InvalidInput` unless `folder` holds the manifest's files, unchanged, and nothing else but `besides`."""
    listed = dict(manifest["files"])
    try:
        for path in sorted(_inside(folder)):
            _check_file(folder, path, listed, (MANIFEST, *besides))
    except (OSError, RecursionError) as error:
        raise InvalidInput(f"{folder} must hold files that can be read, but: {error!s:.200}") from error
    if listed:
        raise InvalidInput(f"{folder} must hold every file of its manifest, but {sorted(listed)[0]!r} is missing.")


def _inside(folder: Path) -> Iterator[Path]:
    """All that lies in a folder. How deep Python itself would go depends on its caller and on other packages."""
    for path in folder.rglob("*"):
        if len(path.parts) > len(folder.parts) + _FOLDERS_DEEP:
            raise InvalidInput(
                f"{folder} must hold files that can be read, but has folders more than {_FOLDERS_DEEP} deep."
            )
        yield path


def _check_file(folder: Path, path: Path, listed: dict[str, str], besides: Collection[str]) -> None:
    """Check one file and take it off the list."""
    name = str(path.relative_to(folder))
    if path.is_symlink():
        raise InvalidInput(f"{folder} must hold no links, but {name!r} is one.")
    if not path.is_dir() and not path.is_file():
        raise InvalidInput(f"{folder} must hold plain files only, but {name!r} is none.")
    if path.is_dir() or name in besides:
        return
    if name not in listed:
        raise InvalidInput(f"{folder} must hold only the files of its manifest, but also has {name!r}.")
    if sha256_of(path) != listed.pop(name):
        raise InvalidInput(f"{folder} must be as it was written, but {name!r} has another SHA-256. It was changed.")


def read_arrays(folder: Path, stem: str, count: int) -> list[np.ndarray]:
    """`stem`_0.npy, `stem`_1.npy, ... in `folder`.

    Raises:
        InvalidInput: One is missing or is not an array.
    """
    return [read_npy(folder / f"{stem}_{index}.npy") for index in range(count)]


def read_npy(path: Path) -> np.ndarray:
    """The array in an `.npy` file; it is no larger than the file.

    Raises:
        InvalidInput: Not such a file.
    """
    try:
        # Mapped, so that a header which promises more than the file holds allocates nothing.
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception as error:  # numpy parses the header as Python's literals and lets the tokenizer's errors through
        raise InvalidInput(f"{path} must hold an array, but: {error!s:.200}") from error


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an uncompressed `.npz` file by name; together they are no larger than the file.

    Raises:
        InvalidInput: Not such a file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        size = path.stat().st_size
        # Members may overlap, and a compressed one can be a thousand times as large as its file.
        if any(x.compress_type != zipfile.ZIP_STORED for x in members) or sum(x.file_size for x in members) > size:
            raise ValueError("its arrays must be stored as they are")
        with np.load(path, allow_pickle=False) as stored:
            for name in stored.files:
                with stored.zip.open(f"{name}.npy") as member:
                    _check_npy_header(member, size)
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # zipfile and numpy raise whatever a damaged file leads them to
        raise InvalidInput(f"{path} must hold arrays, but: {error!s:.200}") from error


def _check_npy_header(file: Any, limit_bytes: int) -> None:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if math.prod(shape) * dtype.itemsize > limit_bytes:
        raise ValueError("an array promises more than the file holds")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
