"""Small images, and files of them."""

import gzip
import io
import struct

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


def film(path, frames, code="FFV1", rate=25.0):
    """Writes frames (h, w, 3) as a video; FFV1 loses nothing, and is for .mkv."""
    from mnv2_jax.lab.data import video

    cv2, (height, width) = video._opencv(), frames[0].shape[:2]  # which keeps FFmpeg silent
    four = cv2.VideoWriter.fourcc(*code)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, four, rate, (width, height))
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


MNIST_FILES = {
    ("train", 12): ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("test", 5): ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def idx_bytes(values: np.ndarray) -> bytes:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_mnist(root, compress=True):
    rng = np.random.default_rng(0)
    written = {}
    for (split, n), (images, labels) in MNIST_FILES.items():
        arrays = rng.integers(0, 256, (n, 28, 28)), np.arange(n) % 10
        written[split] = arrays
        for name, array in zip((images, labels), arrays, strict=True):
            if compress:
                (root / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
            else:
                (root / name).write_bytes(idx_bytes(array))
    return written
