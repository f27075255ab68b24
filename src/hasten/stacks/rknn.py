"""Rockchip: an ONNX file of fixed sizes through rknn-toolkit2: quantized, compiled for a chip, simulated."""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hasten.errors import InvalidInput, Unsupported
from hasten.manifest import read_bytes, read_npy
from hasten.pieces import in_pieces

_SCRIPT = '''"""Builds model.rknn with rknn-toolkit2 {version} alone, in this folder: python build.py"""

from rknn.api import RKNN

rknn = RKNN(verbose=True)
assert rknn.config(target_platform={platform!r}, quantized_algorithm={algorithm!r}) == 0
assert rknn.load_onnx(model="model.onnx") == 0
assert rknn.build(do_quantization={int8}, dataset={dataset!r}) == 0
assert rknn.export_rknn("model.rknn") == 0
'''
# A row of the compiler's table: number, operator, type, where it runs, shapes, cycles of memory, NPU and both.
_ROW = re.compile(r"\] \d+ +(\w+) +\w+ +(NPU|CPU|GPU) .* (\d+)/(\d+)/(\d+) ")
_SIZE = r"Total {} Memory Size: ([\d.]+)(B|KB|MB|GB)"
_UNITS = {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30}


def compile(folder: Path, calibration: str) -> dict[str, Any]:
    """Turn `model.onnx` and `build.json` in `folder` into `model.rknn`, with a script that does the same.

    Args:
        folder: See above.
        calibration: For int8 a folder of `calibration_0.npy`, ... with n batches [n, batch, ...].

    Returns:
        What the compiler states: `cycles` (memory and NPU together, summed over operators), `weight_bytes`,
        `activation_bytes`, `npu_share`, the `operators` with where they run, and its version as `tool`.

    Raises:
        Unsupported: rknn-toolkit2 refuses the file.
    """
    settings = json.loads((folder / "build.json").read_text())
    if settings["precision"] == "int8":
        _write_samples(folder, Path(calibration), settings["inputs"])
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "log.txt"
        with _captured(log):
            rknn = _built(folder, settings, verbose=True)
            done = rknn.export_rknn(str(folder / "model.rknn"))
            rknn.release()
        text = log.read_text(errors="replace")
    if done:
        raise Unsupported(f"rknn-toolkit2 must be able to write model.rknn, but: {_last_error(text)}")
    version = re.search(r"rknn-toolkit2 version: (\S+)", text)
    script = _SCRIPT.format(
        version=version[1] if version else "",
        platform=settings["platform"],
        algorithm=settings["algorithm"],
        int8=settings["precision"] == "int8",
        dataset="dataset.txt" if settings["precision"] == "int8" else None,
    )
    (folder / "build.py").write_text(script)
    return {**read_log(text), "tool": f"rknn-toolkit2 {version[1]}" if version else "rknn-toolkit2"}


def read_log(text: str) -> dict[str, Any]:
    """What the compiler prints about its result; what it does not print is left out."""
    rows = [row for row in _ROW.findall(text) if row[0] not in ("InputOperator", "OutputOperator")]
    found: dict[str, Any] = {}
    if rows:
        found["cycles"] = sum(int(row[4]) for row in rows)
        found["npu_share"] = sum(row[1] == "NPU" for row in rows) / len(rows)
        found["operators"] = [f"{row[0]} on {row[1]}" for row in rows]
    for name, words in (("activation_bytes", "Internal"), ("weight_bytes", "Weight")):
        if size := re.search(_SIZE.format(words), text):
            found[name] = float(size[1]) * _UNITS[size[2]]
    return found


def load(folder: Path) -> Callable[..., tuple[np.ndarray, ...]]:
    """The program in rknn-toolkit2's simulator; any number of rows, in pieces.

    The simulator runs what was built in its own process and no file, so it is built again from the same samples.
    """
    settings = json.loads((folder / "build.json").read_text())
    rknn = _built(folder, settings, verbose=False)
    if rknn.init_runtime():
        raise Unsupported("rknn-toolkit2's simulator must start, but did not.")

    def piece(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        formats = ["nchw"] * len(arrays) if any(x.ndim == 4 for x in arrays) else None
        return [np.asarray(y) for y in rknn.inference(inputs=list(arrays), data_format=formats)]

    return in_pieces(piece, int(settings["batch"]))


def _built(folder: Path, settings: dict[str, Any], verbose: bool) -> Any:
    from rknn.api import RKNN

    rknn = RKNN(verbose=verbose)
    int8 = settings["precision"] == "int8"
    # It leaves files of its own where it is started.
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        if int8:
            Path("dataset.txt").write_text(_dataset(folder))
        steps: list[Callable[[], int]] = [
            lambda: rknn.config(
                target_platform=settings["platform"],
                quantized_algorithm=settings["algorithm"],
            ),
            lambda: rknn.load_onnx(model=str(folder / "model.onnx")),
            lambda: rknn.build(do_quantization=int8, dataset="dataset.txt" if int8 else None),
        ]
        for step in steps:
            try:
                failed = step()
            except Exception as error:  # its errors have no class of their own
                raise Unsupported(
                    f"rknn-toolkit2 must be able to compile the network, but: {_reason(error)}"
                ) from error
            if failed:
                raise Unsupported("rknn-toolkit2 must be able to compile the network, but did not; its log says why.")
    return rknn


def _dataset(folder: Path) -> str:
    """`dataset.txt` with whole paths, of arrays in the folder's own `calibration/` alone.

    Whoever made an artifact could name any file, or one with a pickle in it, which rknn-toolkit2 might load.

    Raises:
        InvalidInput: A name is another, or its file is no array.
    """
    lines = []
    for line in read_bytes(folder / "dataset.txt").decode(errors="replace").splitlines():
        paths = []
        for name in line.split():
            path = folder / name
            if not re.fullmatch(r"calibration/\d+_\d+\.npy", name) or path.is_symlink() or path.parent.is_symlink():
                raise InvalidInput(f"dataset.txt must name files of `calibration/` alone, but names {name!r:.100}.")
            read_npy(path)
            paths.append(str(path))
        lines.append(" ".join(paths))
    return "\n".join(lines)


def _write_samples(folder: Path, calibration: Path, inputs: int) -> None:
    """`calibration/SAMPLE_INPUT.npy` and `dataset.txt`, which names those of one sample on a line."""
    (folder / "calibration").mkdir()
    values = [np.load(calibration / f"calibration_{index}.npy", mmap_mode="r") for index in range(inputs)]
    lines = []
    for sample in range(len(values[0])):
        names = [f"calibration/{sample}_{index}.npy" for index in range(inputs)]
        for name, x in zip(names, values, strict=True):
            np.save(folder / name, np.ascontiguousarray(x[sample]), allow_pickle=False)
        lines.append(" ".join(names))
    (folder / "dataset.txt").write_text("\n".join(lines))


@contextlib.contextmanager
def _captured(path: Path) -> Iterator[None]:
    """Everything that the process prints goes to `path`, what native code prints too."""
    kept = os.dup(1), os.dup(2)
    with path.open("wb") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            for number, before in zip((1, 2), kept, strict=True):
                os.dup2(before, number)
                os.close(before)


def _reason(error: Exception) -> str:
    """The line that says what is wrong, after its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1][:300]


def _last_error(text: str) -> str:
    found = [line for line in text.splitlines() if "E RKNN" in line or "[31m" in line]
    return found[-1][:300] if found else "it said nothing"
