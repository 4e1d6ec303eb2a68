"""Videos, a frame at a time: read from a file or a camera, and written, by OpenCV."""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.files import UnreadableFile, opened, replacing, user_path
from mnv2_jax.lab.data.image import LARGE

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm")  # in small letters or capitals
WRITTEN = ".mp4"  # with MPEG-4 Part 2, which every build of OpenCV has an encoder for
CODEC = "mp4v"
# How such files begin: AVI, Matroska, and QuickTime's boxes. FFmpeg would follow a list of other
# files or addresses, whatever its ending.
BEGINNINGS = (b"RIFF", b"\x1aE\xdf\xa3")
BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
RATES, USUAL_RATE = (0.1, 1000.0), 25.0  # frames a second that a header may give, or else this
CAMERAS = 100  # above, OpenCV takes a number for a driver
SPARE = 20  # one frame in so many, but a second's at most, may lack: headers estimate


class Frame(NamedTuple):
    """A picture of a video."""

    number: int  # from 0
    seconds: float  # since the start
    pixels: np.ndarray  # (h, w, 3) uint8


class Video(NamedTuple):
    """An open video, of which each frame is read once."""

    count: int | None  # of frames, if it is known; headers may be a little wrong
    rate: float  # frames a second
    frames: Iterator[Frame]


def is_video(name: str | os.PathLike[str]) -> bool:
    """Whether a file is a video, by its ending."""
    return str(name).lower().endswith(VIDEOS)


@contextlib.contextmanager
def open_video(source: str | os.PathLike[str] | int) -> Iterator[Video]:
    """Opens a video file, or a camera by its number; one frame at a time is in memory.

    Frames are upright. Their seconds are the container's, those of a camera the time since it was
    opened.

    Raises:
      UsageError: OpenCV is missing, or the video cannot be read: at once, or while it is read, when
        frames are missing at its end. The message names the first that cannot be read.
    """
    cv2 = _opencv()
    if isinstance(source, int):
        name, size = f"camera {source}", 0
        if not 0 <= source < CAMERAS:
            raise UsageError(f"{name} cannot be: give its number, 0 for the first.")
        capture = cv2.VideoCapture(source)
        why = "cannot be opened: give the number of one that is connected and free, 0 for the first"
    else:
        name, (place, size) = f"video {str(source)!r}", _checked(source)
        capture = cv2.VideoCapture(place, cv2.CAP_FFMPEG)
        why = "cannot be read at frame 0: give one that plays elsewhere"
    try:
        if not capture.isOpened():
            raise UsageError(f"{name} {why}.")
        width, height = (
            int(capture.get(each)) for each in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        )
        if width * height > LARGE:
            limits = f"the limit is {LARGE / 1e6:.1f} megapixels: make it smaller"
            raise UsageError(f"{name} has frames of {width}x{height} pixels; {limits}.")
        count, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
        count = int(count) if 0 < count <= size else None  # a frame takes a byte at least
        rate = rate if RATES[0] <= rate <= RATES[1] else USUAL_RATE
        yield Video(count, rate, _frames(cv2, capture, name, count, rate, live=not size))
    finally:
        capture.release()


def _frames(
    cv2: Any, capture: Any, name: str, count: int | None, rate: float, live: bool
) -> Iterator[Frame]:
    number, start = 0, time.monotonic()
    while True:
        good, pixels = capture.read()
        if not good:
            break
        seconds = time.monotonic() - start if live else capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        yield Frame(number, seconds, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
        number += 1
    if live:
        raise UsageError(f"{name} gives no picture from frame {number} on: is it connected?")
    missing = (count or 0) - number
    if not number or missing > max(1, min(rate, (count or 0) / SPARE)):
        of = f" (its header counts {count:,})" if count else ""
        why = "it is cut off, damaged or of an unknown kind"
        raise UsageError(f"{name} cannot be read from frame {number} on{of}: {why}.")


def _checked(path: str | os.PathLike[str]) -> tuple[str, int]:
    """Returns the full path of a file that begins as a video does, and how many bytes it has."""
    place = user_path(path, "path of the video")
    try:
        with opened(place) as file:
            head, size = file.read(8), os.fstat(file.fileno()).st_size
    except UnreadableFile as error:
        raise UsageError(f"video {error} Give the path of one of {', '.join(VIDEOS)}.") from error
    if not size:
        raise UsageError(f"video {str(path)!r} has no frame 0: the file is empty.")
    if not (head.startswith(BEGINNINGS) or head[4:] in BOXES):
        kinds = "does not begin as an MP4, MOV, AVI, MKV or WebM file does"
        raise UsageError(f"video {str(path)!r} has no frame 0: it {kinds}.")
    return _encoded(place), size


def _encoded(path: Path) -> str:
    """Returns the full path of a file as OpenCV can be given it: other names end the process."""
    place = os.path.abspath(path)
    try:
        place.encode()
    except UnicodeEncodeError as error:
        why = "is not UTF-8, which OpenCV needs: rename it"
        raise UsageError(f"the name {str(path)!r} {why}.") from error
    return place


@contextlib.contextmanager
def video_writer(path: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields a function that adds a picture (h, w, 3) uint8, of one size, to an MP4 file.

    The file is there, whole, once the block has ended; of a block that fails nothing is left. Its
    folder is made. An odd last row or column is left out.

    Raises:
      UsageError: OpenCV is missing, or cannot write pictures of such a size.
      OSError: the file cannot be written.
    """
    cv2 = _opencv()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        film = partial.with_suffix(WRITTEN)  # OpenCV tells the format by the ending
        writer, place, count = cv2.VideoWriter(), _encoded(film), 0

        def write(picture: np.ndarray) -> None:
            nonlocal count
            if not count:
                height, width = picture.shape[:2]
                code = cv2.VideoWriter.fourcc(*CODEC)
                if not writer.open(place, cv2.CAP_FFMPEG, code, rate, (width, height)):
                    raise UsageError(
                        f"OpenCV cannot write {str(path)!r} with frames of {width}x{height} pixels."
                    )
            writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            count += 1

        try:
            yield write
            writer.release()
            written = cv2.VideoCapture(place, cv2.CAP_FFMPEG)
            if written.get(cv2.CAP_PROP_FRAME_COUNT) != count:  # OpenCV says nothing of it
                lost = "frames could not be written: is the disk full?"
                raise OSError(errno.EIO, lost, str(partial))
            written.release()
            os.replace(film, partial)
        finally:
            writer.release()
            film.unlink(missing_ok=True)


def _opencv() -> Any:
    # FFmpeg writes its own lines to standard error, and OpenCV too. What is wrong is said by us.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError as error:
        remedy = "install it with pip install 'mnv2_jax[image]'"
        raise UsageError(f"videos need OpenCV ({first_line(error)}): {remedy}.") from error
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2
