"""Encoded images to arrays, and the scaling of their channels."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


def decoded(content: bytes, channels: int, size: int | None = None) -> np.ndarray:
    """An encoded image as uint8 [H, W, channels], with 1 (grey) or 3 (RGB) channels.

    Grey images become RGB and the other way round, transparency is dropped. With `size` the
    shorter side is resized to it, with antialiasing, and the centre is cut out: [size, size,
    channels]; an image that has this shape is left as it is. Raises what Pillow does for damage.
    """
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        if image.mode == "P":
            image = image.convert("RGBA")
        image = image.convert("L" if channels == 1 else "RGB")
        if size is not None and image.size != (size, size):
            width, height = image.size
            ratio = size / min(width, height)
            scaled = max(size, round(width * ratio)), max(size, round(height * ratio))
            image = image.resize(scaled, Image.Resampling.BILINEAR)
            left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
            image = image.crop((left, top, left + size, top + size))
        pixels = np.asarray(image, np.uint8)
    return pixels[..., None] if channels == 1 else pixels


@dataclass(frozen=True)
class Scaling:
    """Mean and 1/std of each channel, float32 [C]; a constant channel keeps its scale."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, batches: Iterable[np.ndarray]) -> Scaling:
        """That of all pixels of images [..., C]; at least one."""
        count, total, squares = 0, np.zeros(1), np.zeros(1)
        for batch in batches:
            # For whole numbers, as pixels are, both sums are exact: in any order, on any machine.
            pixels = batch.reshape(-1, batch.shape[-1]).astype(np.float64)
            count += len(pixels)
            total = total + pixels.sum(axis=0)
            squares = squares + np.square(pixels).sum(axis=0)
        mean = total / count
        variance = np.maximum(0.0, squares / count - mean**2)
        scale = [1.0 / math.sqrt(value) if value else 1.0 for value in variance]
        return cls(mean.astype(np.float32), np.array(scale, np.float32))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images [..., C] shifted and scaled, float32."""
        return (images.astype(np.float32) - self.mean) * self.scale
