"""Reads pictures from a folder or a zip laid out as train/<class>/*, test/<class>/*, decoding only what is asked for."""

import io
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mdcs.data.splits import Listing, Source
from mdcs.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
SPLITS = ("train", "test")
LAYOUT = "train/<class>/<picture> and test/<class>/<picture>"


class Store(NamedTuple):
    """Where pictures lie. Names are relative, with "/" between their parts; those of folders end with "/"."""

    base: str  # what stands before train/ and test/: nothing, or one folder
    entries: list[str]  # everything under train/ and test/
    read: Callable[[str], bytes]


@contextmanager
def open_store(root: Path) -> Iterator[Store]:
    """The files under train/ and test/ of a folder or zip, also where both lie inside one folder at its top."""
    if root.is_dir():
        tops = ["", *(f"{path.name}/" for path in root.iterdir() if path.is_dir())]
        base = _base({f"{top}{split}/" for top in tops for split in SPLITS if (root / top / split).is_dir()}, root)
        yield Store(base, list(_walk(root, base)), lambda name: (root / name).read_bytes())
        return
    try:
        archive = zipfile.ZipFile(root)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{root} cannot be read as a zip of pictures ({error}): expected {LAYOUT} in it") from error
    with archive:
        names = set(archive.namelist())
        parts = [name.split("/") for name in names]
        base = _base({"/".join(of[:depth]) + "/" for of in parts for depth in (1, 2) if len(of) > depth}, root)
        yield Store(base, [name for name in names if name.startswith(tuple(f"{base}{split}/" for split in SPLITS))], archive.read)


def picture_source(store: Store, root: Path) -> Source:
    """Classes and pictures in sorted order. A class without pictures is kept, so that it can be named later."""
    by_split: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    skipped = []
    for entry in sorted(store.entries):
        split, _, rest = entry.removeprefix(store.base).partition("/")
        name, _, file = rest.partition("/")
        if "/" not in rest or any(part.startswith((".", "__MACOSX")) for part in rest.split("/")):
            continue  # the split's own folder, a file beside the class folders, or what a file manager left behind
        pictures = by_split[split].setdefault(name, [])
        if PurePosixPath(file).suffix.lower() in SUFFIXES:
            pictures.append(entry)
        elif file and not file.endswith("/"):
            skipped.append(entry)
    names = tuple(sorted(by_split["train"].keys() | by_split["test"].keys()))
    train, test = (_listing([by_split[split].get(name, []) for name in names], store, root) for split in SPLITS)
    notes = (f"{len(skipped)} files that are no pictures were left out of {root}, the first being {skipped[0]}",) if skipped else ()
    return Source(names, train, test, notes)


def _base(folders: set[str], root: Path) -> str:
    """What stands before train/ and test/ among these folders."""
    bases = {folder.removesuffix("train/") for folder in folders if f"/{folder}".endswith("/train/")}
    bases = {base for base in bases if f"{base}test/" in folders}
    if "" in bases:
        return ""
    if len(bases) != 1:
        found = f"several do: {', '.join(sorted(bases))}" if bases else "neither is so"
        raise UserError(f"{root}: expected {LAYOUT}, here or inside one folder, but {found}")
    return bases.pop()


def _walk(root: Path, base: str) -> Iterator[str]:
    for split in SPLITS:
        for folder, _, files in os.walk(root / base / split, followlinks=True):  # a class folder may be a link to elsewhere
            relative = Path(folder).relative_to(root)
            yield f"{relative.as_posix()}/"
            yield from ((relative / name).as_posix() for name in files)


def _listing(paths_of_class: list[list[str]], store: Store, root: Path) -> Listing:
    paths = [path for of_class in paths_of_class for path in of_class]
    labels = np.repeat(np.arange(len(paths_of_class), dtype=np.int64), [len(of_class) for of_class in paths_of_class])

    def read(positions: np.ndarray) -> Tensor:
        return _decode(store, [paths[position] for position in positions], root)

    return Listing(labels, paths, read)


def _without_address(error: Exception) -> str:
    """Pillow names the object it was given, which says nothing to a person."""
    return re.sub(r" <_io.BytesIO object at \w+>", "", str(error))


def _decode(store: Store, names: list[str], root: Path) -> Tensor:
    """(N, 3, H, W) uint8; grey and indexed pictures become RGB."""
    images_NHW3 = np.empty((0, 0, 0, 3), dtype=np.uint8)
    for row, name in enumerate(names):
        try:
            with Image.open(io.BytesIO(store.read(name))) as picture:
                if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
                    raise ValueError(f"its pixels have more than 8 bits, mode {picture.mode}, and would be clipped to white")
                pixels_HW3 = np.asarray(picture.convert("RGB"))
        except Exception as error:  # a damaged file can fail in any way, in the zip as in the decoder
            raise UserError(f"{root}: {name} cannot be read as a picture ({_without_address(error)}): replace or remove it") from error
        if row == 0:
            images_NHW3 = np.empty((len(names), *pixels_HW3.shape), dtype=np.uint8)
        if pixels_HW3.shape != images_NHW3.shape[1:]:
            (height, width), (first_height, first_width) = pixels_HW3.shape[:2], images_NHW3.shape[1:3]
            raise UserError(
                f"{root}: {name} has {width}x{height} pixels, {names[0]} has {first_width}x{first_height}; all must have one size"
            )
        images_NHW3[row] = pixels_HW3
    return torch.from_numpy(images_NHW3.transpose(0, 3, 1, 2).copy())
