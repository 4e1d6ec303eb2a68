"""Decoding of every kind of file, and transforms against Pillow and plain numpy."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mnv2_jax.lab.data import BadRecord, image
from tests.lab.data.pictures import encoded, photo


@pytest.fixture(params=["installed", "pillow only"])
def decoders(request, monkeypatch):
    """Everything must work with Pillow alone."""
    if request.param == "pillow only":
        monkeypatch.setattr(image, "_optional", lambda module: None)
    return request.param


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_decodes_to_the_pixels_pillow_gives(decoders, subsampling):
    data = encoded(photo(), subsampling=subsampling)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(image.decode(data, "x"), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF"])
def test_lossless_formats(decoders, kind):
    pixels = photo()
    options = {"lossless": True} if kind == "WEBP" else {}
    if kind == "GIF":
        pixels = np.asarray(Image.fromarray(pixels).quantize(64).convert("RGB"))
    decoded = image.decode(encoded(pixels, kind, **options), "x")
    np.testing.assert_array_equal(decoded, pixels)


def test_gray_becomes_three_equal_channels_or_one(decoders):
    for kind in ("JPEG", "PNG"):
        data = encoded(photo(channels=1), kind)
        three, one = image.decode(data, "x"), image.decode(data, "x", channels=1)
        assert one.shape == (37, 50, 1)
        np.testing.assert_array_equal(three, np.repeat(one, 3, axis=2))
    gray_of_color = image.decode(encoded(photo()), "x", channels=1)
    expected = Image.open(io.BytesIO(encoded(photo()))).convert("L")
    np.testing.assert_array_equal(gray_of_color[..., 0], np.asarray(expected))


def test_cmyk_palette_alpha_and_bilevel(decoders):
    pixels = photo()
    cmyk = image.decode(encoded(pixels, mode="CMYK"), "x")
    assert np.abs(cmyk.astype(int) - pixels).mean() < 3
    palette = encoded(pixels, "PNG", mode="P")
    assert np.abs(image.decode(palette, "x").astype(int) - pixels).mean() < 40
    np.testing.assert_array_equal(image.decode(encoded(pixels, "PNG", mode="RGBA"), "x"), pixels)
    assert set(np.unique(image.decode(encoded(pixels, "PNG", mode="1"), "x"))) <= {0, 255}


def test_sixteen_bits_keep_the_high_byte(decoders):
    values = (np.arange(12 * 9, dtype=np.uint16) * 600).reshape(12, 9)
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    decoded = image.decode(out.getvalue(), "x", channels=1)
    np.testing.assert_array_equal(decoded[..., 0], values >> 8)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    return {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: p[::-1].swapaxes(0, 1),
        7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
        8: lambda p: p.swapaxes(0, 1)[::-1],
    }[orientation](pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(decoders, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data, plain = (encoded(photo(40, 64), kind, **given) for given in ({"exif": exif}, {}))
    plain = image.decode(plain, "x")
    np.testing.assert_array_equal(image.decode(data, "x"), turned(plain, orientation))
    if kind != "TIFF":  # which Pillow turns while it loads
        np.testing.assert_array_equal(image.decode(data, "x", orient=False), plain)


def exif_segment(orientation: int, order: str) -> bytes:
    number = {"<": b"II*\0", ">": b"MM\0*"}[order]
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    tags = struct.pack(order + "IH", 8, 1) + entry + bytes(4)
    return b"\xe1" + b"Exif\0\0" + number + tags


XMP = b"\xe1http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>%s</x:xmpmeta>"
SEGMENTS = {
    "EXIF": [exif_segment(6, "<"), exif_segment(3, ">")],
    "XMP": [XMP % b"<a/>", XMP % b'<r:D tiff:Orientation="8"/>'],
    "ICC": [b"\xe2ICC_PROFILE\0\1\1" + bytes(9000)],
    "other": [b"\xfea comment with Exif\0\0 in it", b"\xedPhotoshop 3.0\0", b"\xe1" + bytes(60000)],
    "damaged": [
        b"\xe1Exif\0\0no tags",
        b"\xe1Exif\0\0",
        exif_segment(9, "<"),
        exif_segment(6, "<")[:-6],
    ],
}


@pytest.mark.filterwarnings("ignore")  # Pillow's, of the damaged ones
@given(
    chosen=st.lists(st.sampled_from([s for kind in SEGMENTS.values() for s in kind]), max_size=5)
)
@settings(max_examples=60, deadline=None)
def test_both_decoders_find_the_orientation_in_whatever_order_the_segments_come(chosen):
    plain = encoded(photo(24, 40))
    data = (
        plain[:2]
        + b"".join(b"\xff" + s[:1] + struct.pack(">H", len(s) + 1) + s[1:] for s in chosen)
        + plain[2:]
    )
    with pytest.MonkeyPatch.context() as patch:
        decoded = [image.decode(data, "x")]
        patch.setattr(image, "_optional", lambda module: None)
        decoded.append(image.decode(data, "x"))
    np.testing.assert_array_equal(*decoded)
    tags = [s for s in chosen if s in SEGMENTS["EXIF"]]
    if len(tags) == 1 and not set(chosen) & set(SEGMENTS["damaged"]):
        expected = turned(image.decode(plain, "x"), 6 if tags == SEGMENTS["EXIF"][:1] else 3)
        np.testing.assert_array_equal(decoded[0], expected)


def test_one_pixel(decoders):
    for kind in ("PNG", "JPEG"):
        one = image.decode(encoded(np.full((1, 1, 3), 77, np.uint8), kind), "x")
        assert one.shape == (1, 1, 3)
        rng = np.random.default_rng(0)
        for made in (
            image.inception_crop(one, rng, 8),
            image.center_crop(one, 8, 0.875),
            image.stretch_crop(one, 8, 0.875),
        ):
            assert made.shape == (8, 8, 3)
            np.testing.assert_array_equal(made, np.broadcast_to(one, (8, 8, 3)))


def png_header(width, height) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + bytes(4)


def jpeg_claiming(width, height) -> bytes:
    data = bytearray(encoded(photo()))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    "data", [png_header(20000, 20000), jpeg_claiming(20000, 20000), png_header(12000, 9000)]
)
def test_a_picture_that_is_too_large_is_refused_from_its_header(decoders, data):
    told = r"is a picture of \d+x\d+ pixels, \d+.0 megapixels; the limit is (67.1|268.4) for .*EG?"
    with pytest.raises(BadRecord, match=told.replace("EG?", "(PNG|JPEG)").replace(".*", "")):
        image.decode(data, "bomb")


MEASURED = """
import io, sys
from pathlib import Path
from PIL import Image
from mnv2_jax.lab.data import image
def memory(kind):
    return int(Path("/proc/self/status").read_text().split(kind + ":")[1].split()[0]) / 1024
file = io.BytesIO()
Image.new("RGB", (12000, 9000), (9, 9, 9)).save(file, "JPEG")
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
pixels = image.decode(file.getvalue(), "x")
print(pixels.shape, pixels[7, 7].tolist(), memory("VmHWM") - before < 400)
"""


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")
def test_108_megapixels_are_read_at_half_their_size_within_400_mb():
    ran = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True)
    assert ran.stdout == "(4500, 6000, 3) [9, 9, 9] True\n", ran.stderr


LARGE = {
    "JPEG": {},
    "JPEG progressive": {"progressive": True},
    "PNG": {},
    "WEBP": {"lossless": True},
}


@pytest.mark.parametrize("kind", [*LARGE, "PNG P", "PNG L", "PNG RGBA", "PNG I;16", "JPEG CMYK"])
@pytest.mark.parametrize("size", [(64, 80), (61, 83), (1, 4001)])
def test_large_pictures_are_read_smaller(decoders, monkeypatch, kind, size):
    """With a limit of 1,000 pixels instead of 33 million: at a quarter of the sides."""
    pixels, (form, _, mode) = photo(*size), kind.partition(" ")
    options = LARGE.get(kind, {})
    if mode == "I;16":
        pixels = (pixels[..., :1] // 2).repeat(3, axis=2)
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16) << 8)
        file = io.BytesIO()
        picture.save(file, "PNG")
        data = file.getvalue()
    else:
        data = encoded(
            pixels, form, **options, mode=mode if mode in ("P", "L", "RGBA", "CMYK") else None
        )
    whole = image.decode(data, "x")
    monkeypatch.setattr(image, "LARGE", 1000)
    small = image.decode(data, "x")
    assert small.shape == (*image.read_size(*size), 3)
    factor = 4
    mean = np.pad(whole, [(0, -n % factor) for n in size] + [(0, 0)], "edge")
    mean = mean.reshape(small.shape[0], factor, small.shape[1], factor, 3).mean((1, 3))
    assert np.abs(small - mean).mean() < 3


def test_a_large_label_map_has_the_size_of_its_picture_and_no_new_labels(monkeypatch):
    monkeypatch.setattr(image, "LARGE", 1000)
    labels = np.zeros((61, 83, 1), np.uint8)
    labels[:, 40:] = 200
    small = image.decode_labels(encoded(labels, "PNG"), "x")
    assert small.shape == image.read_size(61, 83) == image.decode(encoded(labels), "x").shape[:2]
    assert set(np.unique(small)) == {0, 200}


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"GIF89a", b"text", b"%!PS-Adobe-3.0 EPSF-3.0\n", png_header(0, 5)]
)
def test_what_is_no_image_is_a_bad_record(decoders, data):
    with pytest.raises(BadRecord) as error:
        image.decode(data, "the-name")
    assert error.value.name == "the-name"
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore")
@given(seed=st.integers(0, 2**32), cut=st.floats(0, 1), kind=st.sampled_from(["JPEG", "PNG"]))
@settings(max_examples=60, deadline=None)
def test_damaged_images_decode_to_pixels_or_are_bad_records(seed, cut, kind):
    rng = np.random.default_rng(seed)
    data = np.frombuffer(encoded(photo(), kind), np.uint8).copy()
    data[rng.integers(0, len(data), 3)] = rng.integers(0, 256, 3)
    data = data.tobytes()[: max(1, int(cut * len(data)))] if seed % 2 else data.tobytes()
    try:
        decoded = image.decode(data, "x")
    except BadRecord as bad:
        assert "\n" not in str(bad)  # noqa: PT017
    else:
        assert decoded.dtype == np.uint8
        assert decoded.shape[2] == 3


def test_a_cut_jpeg_is_bad_and_not_half_gray(decoders):
    data = encoded(photo())
    for size in (len(data) // 2, len(data) - 2):
        with pytest.raises(BadRecord):
            image.decode(data[:size], "x")


SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(size=SIZES, new=SIZES, channels=st.sampled_from([1, 3]))
@settings(max_examples=40, deadline=None)
def test_resize_with_antialias_is_pillows(size, new, channels):
    pixels = photo(*size, channels)
    whole = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    for method in ("bilinear", "bicubic"):
        expected = np.asarray(whole.resize(new[::-1], getattr(Image.Resampling, method.upper())))
        resized = image.resize(pixels, *new, method)
        np.testing.assert_array_equal(resized, expected.reshape(*new, channels))


@given(size=SIZES, new=SIZES, channels=st.sampled_from([1, 3]))
@settings(max_examples=40, deadline=None)
def test_resize_without_antialias_interpolates_between_two_pixels(size, new, channels):
    """The reference is `np.interp` along each axis, between the pixel centers."""
    pixels = photo(*size, channels)
    expected = pixels.astype(np.float64)
    for axis in (0, 1):
        centers = (np.arange(new[axis]) + 0.5) * size[axis] / new[axis] - 0.5
        expected = np.apply_along_axis(
            lambda line, c=centers: np.interp(c, np.arange(len(line)), line), axis, expected
        )
    with pytest.MonkeyPatch.context() as patch:
        for _ in range(2):
            resized = image.resize(pixels, *new, "bilinear", antialias=False)
            assert np.abs(resized - expected).max() <= 1.01
            patch.setattr(image, "_optional", lambda module: None)


def test_bicubic_without_antialias_is_exact_on_a_parabola_when_enlarging():
    """Keys' kernel with a = -1/2 reproduces quadratics away from the border."""
    x = np.arange(20)
    pixels = np.broadcast_to((x**2 // 2 + x)[None, :, None], (6, 20, 1)).astype(np.uint8)
    exact = pixels.astype(np.float64)
    resized = image.resize(pixels, 6, 40, "bicubic", antialias=False)[0, 6:-6, 0]
    centers = (np.arange(40) + 0.5) / 2 - 0.5
    expected = np.interp(centers, x, exact[0, :, 0])[6:-6]
    assert np.abs(resized - expected).max() <= 1.0


def test_nearest_takes_the_pixel_whose_area_holds_the_center():
    pixels = np.arange(4, dtype=np.uint8).reshape(1, 4, 1)
    assert image.resize(pixels, 1, 8, "nearest").ravel().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert image.resize(pixels, 1, 2, "nearest").ravel().tolist() == [1, 3]


def coordinates(height, width) -> np.ndarray:
    """An image whose pixels say where they were."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.zeros_like(y)], axis=-1).astype(np.uint8)


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    seed=st.integers(0, 2**32),
    low=st.floats(0.05, 0.9),
)
@settings(max_examples=100, deadline=None)
def test_inception_crop_cuts_what_it_should(size, seed, low):
    """`resize` is replaced so that the rectangle itself comes out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image, "resize", lambda pixels, *size, antialias: pixels)
        cut = image.inception_crop(
            coordinates(*size), np.random.default_rng(seed), 8, area=(low, 1.0)
        )
    height, width = cut.shape[:2]
    top, left = cut[0, 0, :2].astype(int)
    np.testing.assert_array_equal(cut[..., 0], np.mgrid[top : top + height, :width][0])
    np.testing.assert_array_equal(cut[..., 1], np.mgrid[:height, left : left + width][1])
    if min(size) >= 30 and max(size) < 4 / 3 * min(size):
        half = 0.5 * (height + width) + 0.25  # rounding moves each side by half a pixel
        assert low * size[0] * size[1] - half <= height * width
        assert (width + 0.5) / (height - 0.5) >= 3 / 4
        assert (width - 0.5) / (height + 0.5) <= 4 / 3


def test_inception_crop_is_uniform_in_area():
    rng = np.random.default_rng(0)
    pixels = np.zeros((200, 200, 1), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image, "resize", lambda pixels, *size, antialias: pixels)
        areas = [
            image.inception_crop(pixels, rng, 8, area=(0.1, 0.5)).size / 200**2 for _ in range(2000)
        ]
    assert 0.1 - 0.01 <= min(areas) <= max(areas) <= 0.5 + 0.01
    assert abs(np.mean(areas) - 0.3) < 4 * (0.4 / np.sqrt(12)) / np.sqrt(2000)


def test_inception_crop_of_a_strip_falls_back_to_its_center():
    cut = image.inception_crop(np.zeros((3, 90, 1), np.uint8), np.random.default_rng(0), 8)
    assert cut.shape == (8, 8, 1)


def test_center_crop_is_the_crop_of_a_resized_image():
    """Resizing the shorter side to 256 and cutting 224, against cutting first."""
    pixels = photo(300, 400)
    expected = image.central(image.resize(pixels, 256, 341), 224, 224).astype(int)
    cropped = image.center_crop(pixels, 224, 0.875).astype(int)
    assert np.abs(cropped - expected).mean() < 1.5
    whole = image.center_crop(coordinates(8, 12), 8, 1.0)
    np.testing.assert_array_equal(whole, coordinates(8, 12)[:, 2:10])
    stretched = image.stretch_crop(coordinates(8, 8), 4, 0.5)
    np.testing.assert_array_equal(stretched, coordinates(8, 8)[2:6, 2:6])


def test_flip_mirrors(decoders):
    for channels in (1, 3):
        pixels = photo(channels=channels)
        np.testing.assert_array_equal(image.flip(pixels), pixels[:, ::-1])
        assert image.flip(pixels).flags["C_CONTIGUOUS"]


def test_channels_are_converted():
    pixels = photo()
    gray = image.with_channels(pixels, 1)
    np.testing.assert_array_equal(gray[..., 0], np.asarray(Image.fromarray(pixels).convert("L")))
    np.testing.assert_array_equal(image.with_channels(gray, 3), np.repeat(gray, 3, axis=2))
    assert image.with_channels(pixels, None) is image.with_channels(pixels, 3) is pixels


def test_pad_crop_reaches_every_offset_and_pads_with_zeros():
    pixels = coordinates(6, 6) + 1
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(400):
        cut = image.pad_crop(pixels, rng, pad=2)
        assert cut.shape == pixels.shape
        inside = cut[..., 2] == 1
        y, x = np.argwhere(inside)[0]
        top, left = int(cut[y, x, 0]) - 1 - y, int(cut[y, x, 1]) - 1 - x
        seen.add((top, left))
        assert not cut[~inside].any()
        assert inside.sum() == (6 - abs(top)) * (6 - abs(left))
    assert seen == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}
