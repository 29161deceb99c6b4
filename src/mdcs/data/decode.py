"""A picture file's bytes to pixels, whatever it holds: grey, palette, transparent, CMYK, 16 bit, turned by EXIF; or refused by name."""

import io
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from mdcs.data.store import Store
from mdcs.errors import UserError

MOST_PIXELS = 178_956_970  # 512 MiB of RGB; a small file can claim any size
HEADER_BYTES = 65_536  # enough for the headers of most pictures; the others are read whole
ORIENTATION = 0x0112  # EXIF tag: 1 upright, 2 to 8 mirrored or turned
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Jpeg(JpegImagePlugin.JpegImageFile):
    """Without the search for dots per inch, which warns of damaged EXIF tags; they are common, and nobody asks for it."""

    def _read_dpi_from_exif(self) -> None:
        pass


# The format's class itself rather than Image.open, which warns of large pictures through global state and tries every format there is.
FORMATS: tuple[tuple[re.Pattern[bytes], Callable[[io.BytesIO], ImageFile.ImageFile]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), Jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), WebPImagePlugin.WebPImageFile),
    (re.compile(rb"GIF8"), GifImagePlugin.GifImageFile),
    (re.compile(rb"BM"), BmpImagePlugin.BmpImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImagePlugin.TiffImageFile),
    (re.compile(rb"P[1-6f]\s"), PpmImagePlugin.PpmImageFile),
)


class BadPicture(UserError):
    """A file that cannot be read as a picture."""


def decode(content: bytes, name: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB, turned as EXIF says, of the first frame. BadPicture, naming the file, if it cannot be.

    Transparent pixels lie on white. 16-bit grey is scaled to 8 bits, round(v · 255 / 65535); of 16-bit RGB the upper byte is kept. CMYK is
    converted without colour profiles.
    """
    try:
        with _open(content) as picture:
            picture.load()
            turn = TURNS.get(_orientation(picture))
            upright = rgb(picture)
            if turn is not None:
                upright = upright.transpose(turn)
            return np.array(upright)
    except Exception as error:  # a damaged file can fail in any way
        raise _bad(name, error) from error


def measure(content: bytes, name: str) -> tuple[int, int]:
    """(height, width) of the upright picture, from its header: damage further on goes unseen. `content` may be cut after the header."""
    try:
        with _open(content) as picture:
            width, height = picture.size
            return (width, height) if _orientation(picture) >= 5 else (height, width)
    except Exception as error:
        raise _bad(name, error) from error


def measured(store: Store, name: str) -> tuple[int, int]:
    """(height, width) of a picture in `store`, of which little more than the header is read."""
    head = store.read(name, HEADER_BYTES)
    try:
        return measure(head, name)
    except BadPicture:
        if len(head) < HEADER_BYTES:
            raise
        return measure(store.read(name), name)  # a long preview or colour profile stands before the size


@dataclass(frozen=True)
class Decoded:
    """The pictures of a store by position in `paths`."""

    store: Store
    paths: Sequence[str]

    def __call__(self, position: int) -> np.ndarray:
        """(H, W, 3) uint8."""
        name = self.paths[position]
        return decode(self.store.read(name), name)


def _open(content: bytes) -> ImageFile.ImageFile:
    """The picture, its header read."""
    if not content:
        raise ValueError("the file is empty")
    picture = next((opener(io.BytesIO(content)) for magic, opener in FORMATS if magic.match(content)), None)
    if picture is None:
        raise ValueError("it is no JPEG, PNG, WebP, GIF, BMP, TIFF or PPM file")
    width, height = picture.size
    if not 0 < width * height <= MOST_PIXELS:
        raise ValueError(f"it has {width}x{height} pixels, at most {MOST_PIXELS:,} are read")
    return picture


def rgb(picture: Image.Image) -> Image.Image:
    """`picture` as 8-bit RGB, transparent pixels on white; ValueError where its pixels have no 8-bit meaning."""
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        values_HW = np.asarray(picture)
        if picture.mode == "F" or values_HW.min() < 0 or values_HW.max() > 65535:
            raise ValueError(f"its pixels are neither 8 nor 16 bit: mode {picture.mode}, {values_HW.min()} to {values_HW.max()}")
        return Image.fromarray(np.round(values_HW / 257).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture.convert("RGB")


def _orientation(picture: ImageFile.ImageFile) -> int:
    """1 to 8. Pillow's own reader warns of damaged tags, which are common, and loads the pixels to look for late ones."""
    if picture.format == "TIFF":
        return 1  # Pillow has turned it already
    tiff = picture.info.get("exif", b"").removeprefix(b"Exif\0\0")
    endian = {b"II": "<", b"MM": ">"}.get(tiff[:2], "")
    try:
        (directory,) = struct.unpack_from(f"{endian}L", tiff, 4)
        (num_entries,) = struct.unpack_from(f"{endian}H", tiff, directory)
        for entry in range(num_entries):
            tag, _, _, value = struct.unpack_from(f"{endian}HHLH", tiff, directory + 2 + 12 * entry)
            if tag == ORIENTATION:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _bad(name: str, error: Exception) -> BadPicture:
    reason = re.sub(r" <_io.BytesIO object at \w+>", "", str(error)) or type(error).__name__  # it says nothing to a person
    return BadPicture(f"{name} cannot be read as a picture ({' '.join(reason.split())}): replace or remove it")
