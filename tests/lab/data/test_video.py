"""Videos beside the pictures that they were made of, and what is no video."""

import resource
import struct
import sys

import numpy as np
import pytest

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import video
from mnv2_jax.lab.data.video import USUAL_RATE, open_video, video_writer
from tests.lab.data.pictures import film

pytest.importorskip("cv2")
COUNT, SIZE = 20, (48, 64)


def pictures(count=COUNT, height=SIZE[0], width=SIZE[1]):
    """Smooth ones, so that a lossy codec changes little; red, green and blue differ."""
    rows, columns = np.mgrid[:height, :width]
    red = [4 * rows, 3 * columns, rows + columns]
    return [np.stack(red, -1).astype(np.uint8) // 2 + 4 * n for n in range(count)]


@pytest.fixture(scope="module")
def avi(tmp_path_factory):
    return film(tmp_path_factory.mktemp("v") / "a.avi", pictures(), "MJPG").read_bytes()


def test_frames_are_those_that_were_written(tmp_path):
    path = film(tmp_path / "ä 100%.MKV", pictures(), "FFV1", 12.5)  # without loss
    with open_video(path) as opened:
        assert (opened.count, opened.rate) == (COUNT, 12.5)
        for number, (frame, expected) in enumerate(zip(opened.frames, pictures(), strict=True)):
            assert frame.number == number and frame.seconds == pytest.approx(number / 12.5)
            np.testing.assert_array_equal(frame.pixels, expected)


@pytest.mark.parametrize("size", [SIZE, (49, 65)])
def test_a_written_video_shows_its_pictures_and_leaves_nothing_else(tmp_path, size):
    path, expected = tmp_path / "new/a.mp4", pictures(5, *size)
    for _ in range(2):  # the second time it takes the place of the first
        with video_writer(path, 10) as draw:
            for picture in expected:
                draw(picture)
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]
    with open_video(path) as opened:
        found = list(opened.frames)
    assert len(found) == 5 and [f.seconds for f in found] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    for frame, picture in zip(found, expected, strict=True):
        assert np.abs(frame.pixels.astype(int) - picture[:48, :64]).mean() < 4


def test_a_video_that_cannot_be_written_whole_leaves_the_old_one(tmp_path):
    path, noise = tmp_path / "a.mp4", np.random.default_rng(0).integers(0, 256, (30, 96, 96, 3))

    def draw(frames):
        with video_writer(path, 10) as add:
            for frame in frames:
                add(frame.astype(np.uint8))

    draw(pictures(2))
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # as a full disk
        with pytest.raises(OSError, match="frames could not be written") as caught:
            draw(noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    with pytest.raises(UsageError, match=r"cannot write '.*a\.mp4' with frames of 9000x48 pixels"):
        draw([np.zeros((48, 9000, 3))])
    with pytest.raises(UsageError, match="is not UTF-8"), video_writer(tmp_path / "\udce9", 10):
        pass
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.mp4", before)]


def patched(data, chunk, offset, *numbers):
    start = data.index(chunk) + 8 + offset
    new = struct.pack(f"<{len(numbers)}I", *numbers)
    return data[:start] + new + data[start + len(new) :]


def test_what_a_header_claims_does_no_harm(avi, tmp_path, monkeypatch):
    path = tmp_path / "a.avi"
    for hostile, count, rate in (
        (patched(avi, b"strh", 32, 2**32 - 1), None, 25),  # frames
        (patched(avi, b"strh", 20, 1, 2**32 - 1), COUNT, USUAL_RATE),  # frames a second
        (patched(patched(avi, b"strh", 20, 1, 0), b"avih", 0, 0), COUNT, 25),
        (patched(avi, b"avih", 32, 2**31, 2**31), COUNT, 25),  # width and height
    ):
        path.write_bytes(hostile)
        with open_video(path) as opened:
            assert (opened.count, opened.rate) == (count, rate)
            assert [f.pixels.shape for f in opened.frames] == [(*SIZE, 3)] * COUNT
    monkeypatch.setattr(video, "LARGE", SIZE[0] * SIZE[1] - 1)
    with pytest.raises(UsageError, match=r"a\.avi' has frames of 64x48 pixels; the limit"):
        open_video(path).__enter__()


def test_a_video_that_is_cut_off_names_the_first_frame_that_is_missing(avi, tmp_path):
    path = tmp_path / "cut.avi"
    path.write_bytes(avi[: int(len(avi) * 0.9)])
    with open_video(path) as opened:
        found = [next(opened.frames)]
        message = rf"cut\.avi' cannot be read from frame \d+ on \(its header counts {COUNT}\)"
        with pytest.raises(UsageError, match=message) as caught:
            found += opened.frames  # keeps what came before
    assert 1 < len(found) < COUNT and f"from frame {len(found)} on" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.mp4", None, "gone.mp4' cannot be read: No such file"),
        ("a.mov", b"", "has no frame 0: the file is empty"),
        ("a.mp4", b"noise" * 99, "has no frame 0: it does not begin as an MP4, MOV, AVI"),
        ("a.avi", b"ffconcat version 1.0\nfile other.avi\n", "does not begin as"),
        ("a.avi", b"RIFF\0\0\0\0AVI ", "a.avi' cannot be read at frame 0"),
        ("a.webm", b"\x1aE\xdf\xa3" + b"\0" * 99, "a.webm' cannot be read at frame 0"),
        ("\udce9.mp4", b"\0\0\0\x20ftypisom", "is not UTF-8, which OpenCV needs: rename it"),
    ],
)
def test_what_is_no_video_is_one_line(tmp_path, avi, name, content, message, capfd):
    (tmp_path / "other.avi").write_bytes(avi)  # which a list of files could name
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        open_video(tmp_path / name).__enter__()
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")


def test_cameras_that_cannot_be(capfd):
    for number in (-1, 100, 2**40):
        with pytest.raises(UsageError, match=f"camera {number} cannot be: give its number"):
            open_video(number).__enter__()
    with pytest.raises(UsageError, match="camera 99 cannot be opened: give the number of one"):
        open_video(99).__enter__()
    assert capfd.readouterr() == ("", "")


def test_without_opencv_the_remedy_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cv2", None)
    for context in (open_video("a.mp4"), open_video(0), video_writer(tmp_path / "a.mp4", 10)):
        with pytest.raises(UsageError, match=r"OpenCV .*: install it with pip .*mnv2_jax\[image"):
            context.__enter__()
