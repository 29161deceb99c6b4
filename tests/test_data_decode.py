"""Every kind of picture to known pixels; every kind of damage to one line that names the file."""

import contextlib
import io
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from mdcs.data import decode as module
from mdcs.data.decode import BadPicture, Decoded, decode, measure, measured
from mdcs.data.store import open_store

RANDOM = np.random.RandomState(0)
PIXELS_HW3 = RANDOM.randint(0, 256, (6, 9, 3)).astype(np.uint8)
GREY_HW = RANDOM.randint(0, 256, (6, 9)).astype(np.uint8)


def file_of(picture: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A small file that claims any size."""
    header = b"IHDR" + struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">L", 13) + header + struct.pack(">L", zlib.crc32(header)) + struct.pack(">L", 9) + b"IDAT"


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_colour(kind: str) -> None:
    content = file_of(Image.fromarray(PIXELS_HW3), kind, **({"lossless": True} if kind == "WEBP" else {}))
    pixels_HW3 = decode(content, "x")
    assert np.array_equal(pixels_HW3, PIXELS_HW3) and pixels_HW3.dtype == np.uint8 and pixels_HW3.flags.writeable
    assert measure(content, "x") == (6, 9)


def test_jpeg_is_as_pillow_decodes_it() -> None:
    smooth = Image.fromarray(PIXELS_HW3).resize((64, 48))
    content = file_of(smooth, "JPEG", quality=90)
    assert np.array_equal(decode(content, "x"), np.asarray(Image.open(io.BytesIO(content))))
    assert measure(content[:700], "x") == (48, 64)  # the header suffices
    grey = file_of(smooth.convert("L"), "JPEG")
    assert np.array_equal(decode(grey, "x")[..., 1], np.asarray(Image.open(io.BytesIO(grey))))


def test_grey_palette_and_one_bit() -> None:
    grey = Image.fromarray(GREY_HW)
    assert np.array_equal(decode(file_of(grey), "x"), np.repeat(GREY_HW[..., None], 3, 2))
    palette = Image.fromarray(PIXELS_HW3).quantize(16)
    assert np.array_equal(decode(file_of(palette), "x"), np.asarray(palette.convert("RGB")))
    one_bit = Image.fromarray(GREY_HW > 127)
    assert np.array_equal(decode(file_of(one_bit), "x")[..., 0], np.where(GREY_HW > 127, 255, 0))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values_HW = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        assert decode(file_of(Image.fromarray(values_HW), kind), "x")[0, :, 2].tolist() == [0, 0, 1, 1, 128, 255]
    assert decode(b"P5 2 1 65535\n\x80\x80\xff\xff", "x")[0, :, 0].tolist() == [128, 255]


def test_transparent_pixels_lie_on_white() -> None:
    rgba_HW4 = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], dtype=np.uint8)
    for kind in ("PNG", "TIFF", "WEBP"):
        settings = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        decoded = decode(file_of(Image.fromarray(rgba_HW4), kind, **settings), "x")
        assert decoded[0].tolist() == [[10, 20, 30], [255, 255, 255], [127, 127, 127]]
    grey_alpha = Image.fromarray(np.array([[[40, 255], [40, 0]]], dtype=np.uint8), "LA")
    assert decode(file_of(grey_alpha), "x")[0, :, 0].tolist() == [40, 255]
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    palette.putpalette([9, 8, 7, 6, 5, 4])
    assert decode(file_of(palette, transparency=1), "x")[0].tolist() == [[9, 8, 7], [255, 255, 255]]
    colour_key = file_of(Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)), transparency=(4, 5, 6))
    assert decode(colour_key, "x")[0].tolist() == [[1, 2, 3], [255, 255, 255]]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    colour = decode(file_of(cmyk, kind), "x").reshape(-1, 3).mean(0)
    assert colour[0] > 225 and colour[1:].max() < 60  # red


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    for kind, settings in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        assert decode(file_of(frames[0], kind, save_all=True, append_images=frames[1:], **settings), "x")[2, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_turns(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"  # another tag before it
    exif[0x0112] = orientation
    picture = Image.fromarray(PIXELS_HW3).resize((32, 24))
    content = file_of(picture, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert np.array_equal(decode(content, "x"), expected)
    assert measure(content, "x") == expected.shape[:2]
    if kind != "JPEG" and orientation == 6:  # and against what the tag means: the first row stands at the right
        assert np.array_equal(expected, np.rot90(np.asarray(picture), -1))


def test_damaged_exif_does_not_matter() -> None:
    for exif in (b"", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01", b"rubbish"):
        assert decode(file_of(Image.fromarray(PIXELS_HW3), "JPEG", exif=exif), "x").shape == (6, 9, 3)


def test_one_pixel() -> None:
    assert decode(file_of(Image.new("RGB", (1, 1), (1, 2, 3))), "x").tolist() == [[[1, 2, 3]]]


def test_the_content_counts_not_the_suffix() -> None:
    assert np.array_equal(decode(file_of(Image.fromarray(PIXELS_HW3)), "really a PNG.jpg"), PIXELS_HW3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>404</html>", "it is no JPEG"),
        (b"\x00\x00\x00\x18ftypheic", "it is no JPEG"),
        (b"%!PS-Adobe-3.0 EPSF", "it is no JPEG"),
        (b"\xff\xd8\xff", ""),
        (b"\x89PNG\r\n\x1a\n", ""),
        (b"RIFF\x10\0\0\0WEBPVP8 ", ""),
        (b"GIF89a", ""),
        (b"II*\0\x08\0\0\0\0\0", ""),
        (file_of(Image.fromarray(PIXELS_HW3).resize((90, 90)), "JPEG")[:-400], "truncated"),
        (file_of(Image.fromarray(PIXELS_HW3))[:100], ""),
        (png_header(100_000, 100_000), "it has 100000x100000 pixels, at most 178,956,970"),
        (png_header(0, 5), ""),
        (file_of(Image.fromarray(np.float32([[0.5, 2]])), "TIFF"), "neither 8 nor 16 bit: mode F"),
        (file_of(Image.fromarray(np.int32([[-5, 70_000]])), "TIFF"), "neither 8 nor 16 bit: mode I, -5 to 70000"),
    ],
)
def test_what_cannot_be_decoded(content: bytes, reason: str) -> None:
    with pytest.raises(BadPicture, match=rf"^a b/图\.jpg cannot be read as a picture \(.*{reason}.*\): replace or remove it$") as caught:
        decode(content, "a b/图.jpg")
    assert "\n" not in str(caught.value) and "BytesIO" not in str(caught.value)


def test_random_damage_gives_pixels_or_bad_picture() -> None:
    picture = Image.fromarray(PIXELS_HW3).resize((40, 30))
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"):
        whole = file_of(picture, kind)
        for _ in range(60):
            content = bytearray(whole)
            for place in RANDOM.randint(0, len(content), 3):
                content[place] = RANDOM.randint(256)
            for function in (decode, measure):
                with contextlib.suppress(BadPicture):
                    assert len(function(bytes(content), "x")) >= 1


def test_measured_reads_on_behind_a_long_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = file_of(Image.fromarray(PIXELS_HW3), "JPEG", icc_profile=RANDOM.bytes(150_000))
    (tmp_path / "long.jpg").write_bytes(long)
    (tmp_path / "short.jpg").write_bytes(file_of(Image.fromarray(PIXELS_HW3), "JPEG"))
    (tmp_path / "bad.jpg").write_bytes(b"x" * 100_000)
    store = open_store(tmp_path)
    assert measured(store, "long.jpg") == measured(store, "short.jpg") == (6, 9)
    with pytest.raises(BadPicture, match=r"bad\.jpg"):
        measured(store, "bad.jpg")


def test_pixel_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    content = file_of(Image.new("RGB", (20, 10)))
    monkeypatch.setattr(module, "MOST_PIXELS", 200)
    assert decode(content, "x").shape == (10, 20, 3)
    monkeypatch.setattr(module, "MOST_PIXELS", 199)
    with pytest.raises(BadPicture, match="at most 199"):
        measure(content, "x")


def test_decoded_travels_to_workers(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(file_of(Image.fromarray(PIXELS_HW3)))
    picture = pickle.loads(pickle.dumps(Decoded(open_store(tmp_path), ["a.png"])))
    assert np.array_equal(picture(0), PIXELS_HW3)
