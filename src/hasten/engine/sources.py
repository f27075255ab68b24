"""What a batch job reads: .npy, a folder of images, Parquet, WebDataset tar, as shards of named rows."""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.engine.images import SUFFIXES
from hasten.errors import InvalidInput


@dataclass(frozen=True)
class Chunk:
    """Rows that belong together.

    Attributes:
        keys: One name per row.
        data: Rows [n, ...], or the bytes of one encoded image.
    """

    keys: tuple[str, ...]
    data: np.ndarray | bytes


@dataclass(frozen=True)
class Shard:
    """A part of the input that becomes one file of the output.

    Attributes:
        name: Says where the rows come from; stable between runs, so that a stopped job can go on.
        read: Yields the shard's chunks in order.
        rows: Number of rows where that is known beforehand.
    """

    name: str
    read: Callable[[], Iterator[Chunk]]
    rows: int | None = None


def open_source(path: Path, *, shard_rows: int = 4096, chunk_rows: int = 64, column: str | None = None) -> list[Shard]:
    """The shards of an input.

    Args:
        path: A .npy file, a folder of images (searched recursively) or of .tar or .parquet files, or one of these.
        shard_rows: Rows per output file where the input does not decide it (.npy, images).
        chunk_rows: Rows that are sent to the engine at once.
        column: Parquet column to read; None: the only one that can be an input.

    Raises:
        InvalidInput: There is nothing there that can be read.
    """
    if shard_rows < 1:
        raise InvalidInput(f"`shard_rows` must be at least 1, but got {shard_rows}.")
    if path.is_dir():
        files = sorted(x for x in path.rglob("*") if x.is_file())
        for suffix in (".tar", ".parquet"):
            if chosen := [x for x in files if x.suffix == suffix]:
                return [shard for x in chosen for shard in open_source(x, chunk_rows=chunk_rows, column=column)]
        images = [x for x in files if x.suffix.lower() in SUFFIXES]
        if images:
            return _image_shards(path, images, shard_rows)
    elif path.suffix == ".npy" and path.is_file():
        return _npy_shards(path, shard_rows, chunk_rows)
    elif path.suffix == ".tar" and path.is_file():
        return [Shard(path.name, lambda: _read_tar(path))]
    elif path.suffix == ".parquet" and path.is_file():
        return _parquet_shards(path, chunk_rows, column)
    raise InvalidInput(
        f"INPUT must be a .npy, .parquet or .tar file or a folder of images, .tar or .parquet files, but {path} is not."
    )


def files_of(path: Path) -> dict[str, str]:
    """Where the files of an input are, with what changes when one is written again: hashes by folder."""
    files = sorted(x for x in path.rglob("*") if x.is_file()) if path.is_dir() else [path]
    about = [(str(x.relative_to(path)), (found := x.stat()).st_size, found.st_mtime_ns) for x in files]
    return {str(path.resolve()): hashlib.sha256(repr(about).encode()).hexdigest()}


def _npy_shards(path: Path, shard_rows: int, chunk_rows: int) -> list[Shard]:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise InvalidInput(f"{path} must be a .npy file without objects, but: {error}") from error
    if rows.ndim == 0:
        raise InvalidInput(f"{path} must hold rows, but holds a single value.")

    def reader(start: int, stop: int) -> Callable[[], Iterator[Chunk]]:
        def read() -> Iterator[Chunk]:
            for at in range(start, stop, chunk_rows):
                end = min(stop, at + chunk_rows)
                yield Chunk(tuple(map(str, range(at, end))), np.ascontiguousarray(rows[at:end]))

        return read

    bounds = [(at, min(len(rows), at + shard_rows)) for at in range(0, len(rows), shard_rows)]
    return [Shard(f"{path.name}[{a}:{b}]", reader(a, b), b - a) for a, b in bounds]


def _image_shards(root: Path, images: Sequence[Path], shard_rows: int) -> list[Shard]:
    def reader(files: Sequence[Path]) -> Callable[[], Iterator[Chunk]]:
        def read() -> Iterator[Chunk]:
            for file in files:
                yield Chunk((str(file.relative_to(root)),), file.read_bytes())

        return read

    groups = [images[at : at + shard_rows] for at in range(0, len(images), shard_rows)]
    return [
        Shard(f"{group[0].relative_to(root)}..{group[-1].relative_to(root)}", reader(group), len(group))
        for group in groups
    ]


def _read_tar(path: Path) -> Iterator[Chunk]:
    """Images and .npy members; the key is the member's name up to its first dot, as WebDataset has it."""
    with tarfile.open(path) as archive:
        for member in archive:
            stem, _, suffix = Path(member.name).name.partition(".")
            suffix = "." + suffix.lower()
            if not member.isfile() or suffix not in SUFFIXES | {".npy"}:
                continue
            file = archive.extractfile(member)
            assert file is not None
            data = file.read()
            key = str(Path(member.name).parent / stem)
            yield Chunk((key,), np.load(io.BytesIO(data), allow_pickle=False)[None] if suffix == ".npy" else data)


def _parquet_shards(path: Path, chunk_rows: int, column: str | None) -> list[Shard]:
    parquet = _parquet()
    file = parquet.ParquetFile(path)
    name = _column(path, file.schema_arrow, column)

    def reader(group: int, first: int) -> Callable[[], Iterator[Chunk]]:
        def read() -> Iterator[Chunk]:
            at = first
            with parquet.ParquetFile(path) as own:
                for batch in own.iter_batches(chunk_rows, row_groups=[group], columns=[name]):
                    yield from _arrow_chunks(path, batch.column(0), at)
                    at += len(batch)

        return read

    shards, first = [], 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        shards.append(Shard(f"{path.name}#{group}", reader(group, first), rows))
        first += rows
    return shards


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise InvalidInput("Reading or writing Parquet needs: pip install pyarrow") from None
    return pyarrow.parquet


def _column(path: Path, schema: Any, column: str | None) -> str:
    import pyarrow as pa

    def usable(kind: Any) -> bool:
        nested = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)
        packed = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        image = pa.types.is_struct(kind) and any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return bool(nested or packed or image or isinstance(kind, pa.ExtensionType))

    if column is not None:
        if column not in schema.names:
            raise InvalidInput(f"`column` must be one of {', '.join(schema.names)}, but got {column!r}.")
        return column
    found = [field.name for field in schema if usable(field.type)]
    if len(found) != 1:
        raise InvalidInput(
            f"{path} must have one column of lists, tensors or images, but has {len(found)} of {schema.names}. "
            "Name it with `column` (--column)."
        )
    return str(found[0])


def _arrow_chunks(path: Path, column: Any, first: int) -> Iterator[Chunk]:
    import pyarrow as pa

    kind = column.type
    keys = tuple(str(first + i) for i in range(len(column)))
    if column.null_count:
        raise InvalidInput(
            f"{path} must have no empty rows, but row {first + column.is_null().index(True).as_py()} is."
        )
    if pa.types.is_struct(kind):
        column, kind = column.field("bytes"), column.field("bytes").type
    if isinstance(column, pa.FixedShapeTensorArray):
        yield Chunk(keys, column.to_numpy_ndarray())
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        for key, value in zip(keys, column, strict=True):
            yield Chunk((key,), value.as_py())
    else:
        yield Chunk(keys, np.array(column.to_pylist()))
