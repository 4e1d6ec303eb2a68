"""Small image files for the tests of this folder."""

import io

import numpy as np
from PIL import Image


def photo(height=37, width=50, channels=3, seed=0) -> np.ndarray:
    """A smooth random image, so that JPEG keeps it nearly as it is."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(smooth if channels == 3 else smooth.convert("L"))
    return pixels.reshape(height, width, channels)


def encoded(pixels: np.ndarray, kind="JPEG", mode=None, **options) -> bytes:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    out = io.BytesIO()
    options = {"quality": 95, **options} if kind == "JPEG" else options
    (image.convert(mode) if mode else image).save(out, kind, **options)
    return out.getvalue()
