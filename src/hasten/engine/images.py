"""Encoded images to rows of a model's input: decode, resize, centre crop, layout, normalise."""

import importlib.util
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.errors import InvalidInput

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


@dataclass(frozen=True)
class ImageReader:
    """Turns the bytes of an image file into one row.

    Attributes:
        height, width: Of the row, in pixels.
        channels: 1 (grey) or 3 (RGB).
        last: Whether channels come last.
        dtype: uint8 keeps 0 to 255; others are scaled to 0 to 1, then normalised.
        mean, std: Per channel, of the scaled values; empty: not normalised. Not used for uint8.
        crop: Share of the shorter side that the centre crop keeps, as in ImageNet evaluation (0.875 there).
        decoder: `pillow` (antialiased resizing, as most models were trained with) or `opencv` (faster, also
            antialiased). They differ slightly: judge accuracy with the one that is deployed.
    """

    height: int
    width: int
    channels: int = 3
    last: bool = False
    dtype: str = "float32"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    crop: float = 1.0
    decoder: str = "pillow"

    def __post_init__(self) -> None:
        if self.decoder not in ("pillow", "opencv"):
            raise InvalidInput(f"`decoder` must be pillow or opencv, but got {self.decoder!r}.")
        module, package = {"pillow": ("PIL", "pillow"), "opencv": ("cv2", "opencv-python-headless")}[self.decoder]
        if not importlib.util.find_spec(module):
            raise InvalidInput(f"Reading images with {self.decoder} needs: pip install {package}")
        if self.channels not in (1, 3):
            raise InvalidInput(f"`channels` of an image must be 1 or 3, but got {self.channels}.")
        if not (self.dtype == "uint8" or self.dtype.startswith("float")):
            raise InvalidInput(f"An input that images are read for must be uint8 or floats, but is {self.dtype}.")
        if not 0 < self.crop <= 1:
            raise InvalidInput(f"`crop` must be in (0, 1], but got {self.crop}.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) != self.channels:
                raise InvalidInput(
                    f"`{name}` must have {self.channels} values, one per channel, but got {len(values)}."
                )
        if any(value <= 0 for value in self.std):
            raise InvalidInput(f"`std` must be above 0, but got {self.std}.")

    @classmethod
    def for_input(cls, spec: Mapping[str, Any], size: int | None = None, **options: Any) -> "ImageReader":
        """The reader for an input [batch, C, H, W] or [batch, H, W, C]; `size` where the model takes any.

        Raises:
            InvalidInput: The input is not an image, or its size is not known.
        """
        shape = list(spec["shape"][1:])
        last = len(shape) == 3 and shape[0] not in (1, 3) and shape[2] in (1, 3)
        if len(shape) != 3 or (shape[2] if last else shape[0]) not in (1, 3):
            raise InvalidInput(
                f"To read images the input must be [batch, 1 or 3, height, width] or channels last, but "
                f"{spec['name']!r} is {spec['shape']}. Give it as .npy."
            )
        height, width = (shape[0], shape[1]) if last else (shape[1], shape[2])
        height, width = height or size, width or size
        if height is None or width is None:
            raise InvalidInput(f"The model takes images of any size ({spec['shape']}), so `size` must be given.")
        channels = shape[2] if last else shape[0]
        return cls(height, width, channels, last, spec["dtype"], **options)

    def __call__(self, data: bytes) -> np.ndarray:
        """The row [1, C, H, W] or [1, H, W, C].

        Raises:
            InvalidInput: Not an image that the decoder reads.
        """
        pixels = self._pillow(data) if self.decoder == "pillow" else self._opencv(data)
        if self.dtype == "uint8":
            row = pixels if self.last else pixels.transpose(2, 0, 1)
            return np.ascontiguousarray(row[None])
        # One multiplication and one addition per value, into the final layout.
        std = np.array(self.std or (1.0,) * self.channels, np.float32)
        scale = 1 / (255 * std)
        shift = -np.array(self.mean or (0.0,) * self.channels, np.float32) / std
        row = np.empty(
            (1, self.height, self.width, self.channels) if self.last else (1, self.channels, self.height, self.width),
            np.float32,
        )
        for c in range(self.channels):
            plane = row[0, :, :, c] if self.last else row[0, c]
            np.multiply(pixels[:, :, c], scale[c], out=plane)
            plane += shift[c]
        return row if self.dtype == "float32" else row.astype(self.dtype)

    def _box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The centre crop of the source (left, top, right, bottom) that is resized to the row."""
        scale = min(height / self.height, width / self.width) * self.crop
        w, h = self.width * scale, self.height * scale
        return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2

    def _pillow(self, data: bytes) -> np.ndarray:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(data)) as image:
                # JPEG can be decoded at a half, a quarter or an eighth; twice the goal leaves the resize its work.
                image.draft("RGB" if self.channels == 3 else "L", (2 * self.width, 2 * self.height))
                converted = image.convert("RGB" if self.channels == 3 else "L")
                box = self._box(converted.height, converted.width)
                small = converted.resize((self.width, self.height), Image.Resampling.BILINEAR, box)
                pixels = np.asarray(small)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InvalidInput(f"An image must be readable, but: {error}") from error
        return pixels.reshape(self.height, self.width, self.channels)

    def _opencv(self, data: bytes) -> np.ndarray:
        import cv2

        size = _jpeg_size(data)
        fraction = self._fraction(*size) if size else 1
        # As Pillow reads it: what a camera says about its orientation is left to whoever prepares the files.
        flag = getattr(cv2, _OPENCV_FLAGS[self.channels, fraction]) | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        except cv2.error:  # nothing to read
            image = None
        if image is None:
            raise InvalidInput("An image must be readable, but OpenCV cannot decode it.")
        left, top, right, bottom = (round(x) for x in self._box(image.shape[0], image.shape[1]))
        small = _shrunk(cv2, image[top:bottom, left:right], self.height, self.width)
        if self.channels == 3:
            small = cv2.cvtColor(small, cv2.COLOR_BGR2RGB)
        return np.asarray(small).reshape(self.height, self.width, self.channels)

    def _fraction(self, height: int, width: int) -> int:
        """8, 4, 2 or 1: a JPEG decoded at one over this still has twice the row's pixels in the crop."""
        left, top, right, bottom = self._box(height, width)
        spare = min((bottom - top) / self.height, (right - left) / self.width)
        return next((n for n in (8, 4, 2) if spare >= 2 * n), 1)


_OPENCV_FLAGS = {
    (channels, fraction): f"IMREAD_{f'REDUCED_{kind}_{fraction}' if fraction > 1 else kind}"
    for channels, kind in ((3, "COLOR"), (1, "GRAYSCALE"))
    for fraction in (1, 2, 4, 8)
}
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _shrunk(cv2: Any, image: np.ndarray, height: int, width: int) -> np.ndarray:
    """`image` at another size, antialiased: enlarged a little to a whole multiple, then the mean of whole blocks.

    Nearer to Pillow's antialiased resize than OpenCV's own area resize, and in half of its time: whole blocks are
    summed by vector instructions (docs/decisions/2026-11-28-engine-quiet.md).
    """
    blocks = max(1, math.ceil(image.shape[0] / height - 1e-9))
    whole = cv2.resize(image, (blocks * width, blocks * height), interpolation=cv2.INTER_LINEAR)
    return whole if blocks == 1 else np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA))


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) from the frame header of a JPEG file (ITU-T T.81, B.2.2); None: not found."""
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _START_OF_FRAME:
            return int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
        # A byte 0xFF more is padding; every segment before the frame has a length.
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])
    return None
