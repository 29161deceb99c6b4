"""Reads the official CIFAR-10 and CIFAR-100 files (the "python version"), packed or unpacked, without executing anything in them.

The files are pickles, and a pickle is a program. The reader here knows only the names that make a NumPy array, and puts a
passive record in their place.
"""

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mdcs.data.splits import Listing, Source
from mdcs.errors import UserError


class Layout(NamedTuple):
    """The names inside one of the two archives, https://www.cs.toronto.edu/~kriz/cifar.html."""

    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str
    names: str


LAYOUTS = {
    10: Layout(
        archive="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test="test_batch",
        meta="batches.meta",
        labels="labels",
        names="label_names",
    ),
    100: Layout(
        archive="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        train=("train",),
        test="test",
        meta="meta",
        labels="fine_labels",
        names="fine_label_names",
    ),
}


def layout_of(folder: Path) -> Layout | None:
    """The layout of an unpacked archive, or None if `folder` is none."""
    return next((layout for layout in LAYOUTS.values() if all((folder / name).is_file() for name in (layout.meta, layout.test))), None)


def read_folder(folder: Path, layout: Layout) -> Source:
    """An unpacked archive."""
    wanted = (*layout.train, layout.test, layout.meta)
    return _source({name: (folder / name).read_bytes() for name in wanted if (folder / name).is_file()}, layout, folder)


def read_archive(path: Path) -> Source:
    """A tar archive of either dataset, told apart by what it holds. Nothing is unpacked to disk."""
    wanted = {name for layout in LAYOUTS.values() for name in (*layout.train, layout.test, layout.meta)}
    files = {}
    try:
        with tarfile.open(path) as archive:  # one pass: going back in a compressed file means to start again
            for member in archive:
                name = Path(member.name).name
                if name in wanted and (content := archive.extractfile(member)) is not None:
                    files[name] = content.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{path} is no tar archive, or damaged: fetch it again") from error
    layout = next((layout for layout in LAYOUTS.values() if layout.meta in files), None)
    if layout is None:
        raise UserError(f"{path} holds neither CIFAR-10 nor CIFAR-100: expected a file batches.meta or meta in it")
    return _source(files, layout, path)


def _source(files: dict[str, bytes], layout: Layout, where: Path) -> Source:
    missing = [name for name in (*layout.train, layout.test, layout.meta) if name not in files]
    if missing:
        raise UserError(f"{where} is incomplete: {', '.join(missing)} missing; fetch it again")
    names = _unpickle(files[layout.meta], where / layout.meta).get(layout.names)
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise UserError(f"{where / layout.meta} holds no list of class names called {layout.names}")
    train = _listing([(name, files[name]) for name in layout.train], layout, len(names), where)
    test = _listing([(layout.test, files[layout.test])], layout, len(names), where)
    return Source(tuple(names), train, test)


def _listing(files: list[tuple[str, bytes]], layout: Layout, num_classes: int, where: Path) -> Listing:
    parts, labels, paths = [], [], []
    for name, content in files:
        batch = _unpickle(content, where / name)
        pixels, batch_labels = _pixels(batch.get("data")), batch.get(layout.labels)
        if pixels is None or not isinstance(batch_labels, list) or len(batch_labels) != len(pixels):
            raise UserError(f"{where / name} is not a CIFAR file: expected data, (N, 3072) bytes, and as many {layout.labels}")
        if not all(type(label) is int and 0 <= label < num_classes for label in batch_labels):
            raise UserError(f"{where / name}: expected {layout.labels} to be whole numbers from 0 to {num_classes - 1}")
        parts.append(pixels.reshape(-1, 3, 32, 32))
        labels += batch_labels
        paths += [f"{name}/{row:05}" for row in range(len(batch_labels))]
    images = np.concatenate(parts)

    def read(positions: np.ndarray) -> Tensor:
        return torch.from_numpy(images[positions])

    return Listing(np.asarray(labels, dtype=np.int64), paths, read)


class _Record:
    """Stands in for an array or a dtype: keeps what the file says of it and builds nothing."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


ARRAY_NAMES = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),  # as NumPy 2 writes it
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_Record]:
        if (module, name) not in ARRAY_NAMES:
            raise UserError(f"it asks for {module}.{name}, which no CIFAR file needs; it was not executed")
        return _Record


def _unpickle(content: bytes, where: Path) -> dict[str, Any]:
    try:
        # latin1: the official files were written by Python 2, whose strings are bytes
        value = _Reader(io.BytesIO(content), encoding="latin1").load()
    except UserError as error:
        raise UserError(f"{where} is refused: {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"{where} is damaged ({type(error).__name__}: {error}): fetch it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{where} is not a CIFAR file: expected a dictionary in it")
    return value


def _pixels(record: object) -> np.ndarray | None:
    """(N, 3072) uint8 from the record of an array, or None if it is none: red, green and blue plane of each picture, row by row."""
    match record:
        case _Record(state=(_, (int(rows), 3072), _Record(arguments=("u1" | "|u1", *_)), fortran, str() | bytes() as raw)):
            content = raw.encode("latin1") if isinstance(raw, str) else raw
            if len(content) == rows * 3072:
                return np.frombuffer(content, dtype=np.uint8).reshape(rows, 3072, order="F" if fortran else "C")
    return None
