"""Encoded images to rows of a model's input: decode, resize, centre crop, layout, normalise."""

import importlib.util
import io
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
        decoder: `pillow` (antialiased resizing, as most models were trained with) or `opencv` (faster; area resizing
            when shrinking). They differ slightly: judge accuracy with the one that is deployed.
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

        flag = cv2.IMREAD_COLOR if self.channels == 3 else cv2.IMREAD_GRAYSCALE
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        if image is None:
            raise InvalidInput("An image must be readable, but OpenCV cannot decode it.")
        left, top, right, bottom = (round(x) for x in self._box(image.shape[0], image.shape[1]))
        image = image[top:bottom, left:right]
        shrinks = image.shape[0] > self.height
        small = cv2.resize(
            image, (self.width, self.height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
        if self.channels == 3:
            small = cv2.cvtColor(small, cv2.COLOR_BGR2RGB)
        return np.asarray(small).reshape(self.height, self.width, self.channels)
