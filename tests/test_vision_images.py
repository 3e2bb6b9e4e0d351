"""Every mode of Pillow, in memory and in each format of files that holds it: the right pixels, or refused."""

import colorsys
import io
import os
import tarfile

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from entropyfloor.vision import sources
from entropyfloor.vision.images import FORMATS, OTHER_SUFFIXES, SUFFIXES, open_image, to_rgb

X, Y = np.meshgrid(np.linspace(0, 1, 16), np.linspace(0, 1, 16))
GREY = np.rint(255 * X).astype(np.uint8)
RGB = np.rint(255 * np.stack([X, Y, 0.5 * (X + 1 - Y)], -1)).astype(np.uint8)
ALPHA = np.rint(255 * (0.5 + 0.5 * Y)).astype(np.uint8)
WIDE = np.rint(65535 * X * Y).astype(np.uint16)
RED_IN_LAB = (54.29 * 2.55, 128 + 80.81, 128 + 69.89)  # of sRGB's red, adapted to D50


def grey(values):
    return np.repeat(np.asarray(values, np.float64)[..., None], 3, -1)


def each_pixel(function):
    return np.array([[255 * np.array(function(*(pixel / 255))) for pixel in row] for row in RGB])


def palette(mode):
    image = Image.fromarray(GREY // 16).copy()
    image.putpalette([value for i in range(16) for value in (17 * i, 255 - 17 * i, 5 * i)])
    return image if mode == "P" else image.convert("PA")


def stacked(mode, *bands):
    return Image.merge(mode, [Image.fromarray(np.asarray(band, np.uint8)) for band in bands])


def words(mode):
    order = {"B": ">", "N": "="}.get(mode[-1], "<")
    return Image.frombytes(mode, (16, 16), WIDE.astype(f"{order}u2").tobytes())


C, M, K = RGB[..., 0], RGB[..., 1], GREY // 2
INDEX = (GREY // 16).astype(int)
PALETTE = np.stack([17 * INDEX, 255 - 17 * INDEX, 5 * INDEX], -1)
YCC = RGB.astype(np.float64) - [0, 128, 128]
IMAGES = {  # an image, the RGB of its pixels, and by how much integer arithmetic may miss it
    "1": (lambda: Image.fromarray(GREY > 100), grey(255 * (GREY > 100)), 0),
    "L": (lambda: Image.fromarray(GREY), grey(GREY), 0),
    "P": (lambda: palette("P"), PALETTE, 0),
    "PA": (lambda: palette("PA"), PALETTE, 0),
    "RGB": (lambda: Image.fromarray(RGB), RGB, 0),
    "RGBA": (lambda: Image.fromarray(np.dstack([RGB, ALPHA])), RGB, 0),
    "RGBX": (lambda: Image.fromarray(RGB).convert("RGBX"), RGB, 0),
    "RGBa": (lambda: Image.fromarray(np.dstack([RGB, ALPHA])).convert("RGBa"), RGB, 2),
    "LA": (lambda: stacked("LA", GREY, ALPHA), grey(GREY), 0),
    "CMYK": (
        lambda: stacked("CMYK", C, M, 0 * C, K),
        np.stack([(255.0 - ink) * (255.0 - K) / 255 for ink in (C, M, 0.0 * C)], -1),
        1,
    ),
    "YCbCr": (
        lambda: stacked("YCbCr", *np.moveaxis(RGB, -1, 0)),
        (YCC @ np.array([[1, 1, 1], [0, -0.344136, 1.772], [1.402, -0.714136, 0]])).clip(0, 255),
        2,
    ),
    "HSV": (lambda: stacked("HSV", *np.moveaxis(RGB, -1, 0)), each_pixel(colorsys.hsv_to_rgb), 6),
    "LAB": (
        lambda: stacked("LAB", *(np.full((16, 16), round(value)) for value in RED_IN_LAB)),
        np.broadcast_to([255, 0, 0], (16, 16, 3)),
        6,
    ),
    **dict.fromkeys(
        ("I;16", "I;16L", "I;16B", "I;16N"), (None, grey(np.rint(WIDE.astype(np.float64) * 255 / 65535)), 0)
    ),
}
REFUSED = {
    "I": lambda: Image.fromarray(WIDE.astype(np.int32)),
    "F": lambda: Image.fromarray(X.astype(np.float32)),
    "La": lambda: stacked("LA", GREY, ALPHA).convert("La"),
}
HELD = {
    "1": "BMP PNG PPM TIFF GIF",
    "L": "BMP GIF JPEG JPEG2000 PNG PPM TIFF WEBP AVIF",
    "P": "BMP GIF PNG TIFF WEBP",
    "PA": "TIFF WEBP",
    "RGB": "BMP JPEG JPEG2000 PNG PPM TIFF WEBP AVIF",
    "RGBA": "JPEG2000 PNG TIFF",
    "LA": "JPEG2000 PNG TIFF",
    "CMYK": "JPEG JPEG2000 TIFF",
    "YCbCr": "JPEG TIFF",
    "LAB": "TIFF",
    "I;16": "JPEG2000 PNG PPM TIFF",
    "I;16B": "PNG TIFF",
}
OPTIONS = {
    "WEBP": {"lossless": True, "exact": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "JPEG": {"quality": 100, "subsampling": 0},
}


def made(mode):
    make, expected, tolerance = IMAGES[mode]
    return (make() if make else words(mode)), expected, tolerance


@pytest.mark.parametrize("mode", IMAGES)
def test_pixels_of_every_mode(mode):
    image, expected, tolerance = made(mode)
    assert image.mode == mode
    found = to_rgb(image)
    assert found.mode == "RGB"
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("mode", "kind"), [(mode, kind) for mode in HELD for kind in HELD[mode].split()])
def test_pixels_of_every_mode_in_files(mode, kind):
    if kind not in FORMATS:
        pytest.skip(f"this Pillow has no {kind}")
    image, expected, tolerance = made(mode)
    file = io.BytesIO()
    image.save(file, kind, **OPTIONS.get(kind, {}))
    loss = 4 if kind in ("JPEG", "AVIF") else 0
    found = to_rgb(open_image(io.BytesIO(file.getvalue())))
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=0, atol=tolerance + loss)


@pytest.mark.parametrize(
    ("mode", "kind"), [*((mode, None) for mode in REFUSED), ("I", "TIFF"), ("F", "TIFF"), ("F", "PPM")]
)
def test_pixels_of_unknown_range_are_refused(mode, kind):
    image = REFUSED[mode]()
    if kind:
        file = io.BytesIO()
        image.save(file, kind)
        image = open_image(io.BytesIO(file.getvalue()))
    assert image.mode == mode
    with pytest.raises(ValueError, match=r"32-bit numbers \(mode [IF]\)|La"):
        to_rgb(image)


def test_sixteen_bits_of_a_smaller_range():
    """PPM says what its largest value is, as TIFF and PNG do not."""
    file = io.BytesIO(b"P5\n3 1\n1023\n" + np.array([0, 511, 1023], ">u2").tobytes())
    np.testing.assert_array_equal(np.asarray(to_rgb(open_image(file)))[0, :, 0], [0, 127, 255])


# --- which files are opened ------------------------------------------------------------------------------


def test_the_list_of_formats():
    assert {"BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"} <= set(FORMATS)
    assert {".png", ".jpg", ".jpeg", ".tif"} <= SUFFIXES
    assert {".eps", ".ps", ".pdf", ".psd", ".h5"} <= OTHER_SUFFIXES


@pytest.mark.parametrize("place", ["file", "tar"])
def test_a_name_does_not_make_a_program_start(place, tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("a program was started"))
    home = tmp_path / "train" / "cat"
    home.mkdir(parents=True)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    (home / "x.png").write_bytes(eps)
    root = tmp_path
    if place == "tar":
        root = tmp_path / "all.tar"
        with tarfile.open(root, "w") as tar:
            tar.add(tmp_path / "train", "train")
    source = sources.load("folder", root, "train")
    with pytest.raises(sources.UnreadableImageError, match=r"x\.png.* cannot be read as an image"):
        source.read(0)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(OSError, match="no regular file"):
        open_image(tmp_path / "x.png")
