"""The weights of an ONNX file, to compare programs that were exported from differently captured graphs."""

from pathlib import Path

import onnx


def weights_of(path: Path) -> list[bytes]:
    """Every constant of the file, in order."""
    return [x.SerializeToString() for x in onnx.load(path).graph.initializer]
