"""`data.cache=PATH`: pictures decoded and made smaller once, then read from a memory map by every process.

A cache is a folder PATH/<key>. The key is a hash of the names and sizes of all files, of the first 64 KiB of up to 1,000 of them, and of
the length of the short side, so that a changed dataset gets a cache of its own, and one PATH serves several datasets. In it, every 256
pictures are one file of pixels, row by row, and shapes.npy says where they are. It is built beside its place and renamed; an interrupted
build goes on where it stopped.

The short side is brought down to that of the evaluation: 256 pixels for squares of 224. Evaluation sees the same pixels as without a cache.
Random boxes are cut from fewer pixels than in the published code, so that the small ones are blurred.
"""

import hashlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset

from mdcs.data.crops import resized_shape, shrunk
from mdcs.data.decode import Decoded, decode, measured
from mdcs.data.files import Files
from mdcs.data.splits import Splits
from mdcs.data.store import Store
from mdcs.data.survey import evenly, in_threads
from mdcs.errors import UserError

if TYPE_CHECKING:
    from rich.progress import Progress

FORMAT = 1  # of the files; a change makes all keys others
SHARD = 256  # pictures in a file
LOOKED_AT = 200  # pictures whose headers tell how large the cache will be
COMPARED, COMPARED_BYTES = 1_000, 65_536  # files and first bytes of each in the key: those of BMP and PPM sets often have equal sizes

log = logging.getLogger("mdcs")


def cached(splits: Splits, cache: str | os.PathLike[str] | None) -> Splits:
    """The same splits, read from the cache below the folder `cache`, which is built first if need be; None leaves them as they are.

    A note says what was done. UserError if a picture cannot be read, or if there is no place for the cache.
    """
    if cache is None:
        return splits
    parts = {name: pictures.images for name, pictures in splits.named().items() if isinstance(pictures.images, Files)}
    if not parts:
        return splits._replace(notes=(*splits.notes, "data.cache has no effect: the pictures of this dataset lie in memory"))
    originals, rows = _originals(list(parts.values()))
    folder = Path(cache) / originals.key
    note = ""
    if not (folder / "shapes.npy").exists():
        started = time.perf_counter()
        with _alone(Path(cache)):
            if not (folder / "shapes.npy").exists():  # another process may have built it meanwhile
                _build(folder, originals)
                note = f", built in {time.perf_counter() - started:.0f} s"
    picture = MappedPictures(folder)
    note = (
        f"pictures are read from {folder}: {len(picture):,}, short side up to {originals.short_side} pixels, {_size(picture.nbytes)}{note}"
    )
    replaced = {
        name: getattr(splits, name)._replace(images=Files(picture, of, files.crop))
        for (name, files), of in zip(parts.items(), rows, strict=True)
    }
    return splits._replace(notes=(*splits.notes, note), **replaced)


class MappedPictures:
    """The pictures of a cache by row, (H, W, 3) uint8, read-only. Every process opens its own maps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes = np.load(folder / "shapes.npy").astype(np.int64)  # (N, 2) height, width
        sizes = self.shapes.prod(axis=1) * 3
        of_shard = np.add.reduceat(sizes, np.arange(0, len(sizes), SHARD))
        self.starts = sizes.cumsum() - sizes - (of_shard.cumsum() - of_shard).repeat(SHARD)[: len(sizes)]  # within its file
        self.nbytes = int(sizes.sum())
        for shard, size in enumerate(of_shard.tolist()):
            file = _pixels(folder, shard)
            if not file.is_file() or file.stat().st_size != size:
                raise UserError(f"{file} is damaged: expected {size:,} bytes; remove {folder}, and it will be built again")
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.shapes)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}

    def __call__(self, row: int) -> np.ndarray:
        shard = row // SHARD
        if shard not in self._maps:
            self._maps[shard] = np.memmap(_pixels(self.folder, shard), dtype=np.uint8, mode="r").view(np.ndarray)
        height, width = self.shapes[row].tolist()
        start = int(self.starts[row])
        return self._maps[shard][start : start + height * width * 3].reshape(height, width, 3)


class _Originals(NamedTuple):
    """What a cache is made from."""

    stores: tuple[Store, ...]
    files: list[tuple[int, str]]  # number of the store, name; sorted
    short_side: int
    key: str


def _originals(parts: Sequence[Files]) -> tuple[_Originals, list[np.ndarray]]:
    """All pictures of some splits, each once, and the rows of each split among them."""
    stores: list[Store] = []
    names: list[list[tuple[int, str]]] = []
    for files in parts:
        if not isinstance(files.picture, Decoded):
            raise UserError(f"data.cache: pictures of {type(files.picture).__name__} cannot be cached; leave it out")
        store, paths = files.picture.store, files.picture.paths
        if store not in stores:
            stores.append(store)
        number = stores.index(store)
        names.append([(number, paths[position]) for position in files.positions.tolist()])
    chosen = sorted({file for of in names for file in of})
    row_of = {file: row for row, file in enumerate(chosen)}
    sizes = in_threads(lambda place: stores[chosen[place][0]].size(chosen[place][1]), len(chosen), "looking at files")
    (short_side,) = {files.crop.short_side for files in parts}
    digest = hashlib.sha256(f"{FORMAT} {SHARD} {short_side}\n".encode())
    for (number, name), size in zip(chosen, sizes, strict=True):
        digest.update(f"{number} {size} {name}\n".encode("utf-8", "surrogateescape"))
    some = [chosen[place] for place in evenly(len(chosen), COMPARED)]
    for start in in_threads(lambda place: stores[some[place][0]].read(some[place][1], COMPARED_BYTES), len(some), "looking into files"):
        digest.update(start)
    rows = [np.array([row_of[file] for file in of], dtype=np.int64) for of in names]
    return _Originals(tuple(stores), chosen, short_side, digest.hexdigest()[:16]), rows


def _build(folder: Path, originals: _Originals) -> None:
    part = folder.with_name(f"{folder.name}.part")
    try:
        part.mkdir(parents=True, exist_ok=True)
        _require_space(part, originals)
        shards = _Shards(part, originals)
        workers = min(len(os.sched_getaffinity(0)), len(shards))
        loader = DataLoader(shards, batch_size=None, num_workers=workers if workers > 1 else 0)
        with _bar() as bar:
            task = bar.add_task("building the cache", total=len(originals.files))
            for built in loader:
                if isinstance(built, Exception):
                    raise built
                bar.advance(task, built)
        with open(part / "shapes.npy", "wb") as file:
            np.save(file, np.concatenate([np.load(_shapes(part, shard)) for shard in range(len(shards))]))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, folder)
    except UserError:
        shutil.rmtree(part, ignore_errors=True)  # the picture will be replaced or left out, and the key another
        raise
    except OSError as error:
        reason = f"data.cache={folder.parent} cannot be written ({error.strerror or error})"
        if not part.is_dir():
            raise UserError(f"{reason}: choose another folder") from error
        what = f"finished parts stay in {part}, and the same command goes on from there once it can be written"
        raise UserError(f"{reason}: {what}; or remove it and choose another folder") from error


class _Shards(Dataset[int | UserError | OSError]):
    """Writes a file of pixels when it is indexed, unless it is there; answers with the number of pictures in it, or with what is wrong."""

    def __init__(self, folder: Path, originals: _Originals) -> None:
        self.folder = folder
        self.originals = originals

    def __len__(self) -> int:
        return -(-len(self.originals.files) // SHARD)

    def __getitem__(self, shard: int) -> int | UserError | OSError:
        files = self.originals.files[shard * SHARD : (shard + 1) * SHARD]
        if not _shapes(self.folder, shard).exists():
            shapes = np.empty((len(files), 2), dtype=np.int32)
            try:
                with open(_pixels(self.folder, shard), "wb") as target:
                    for row, (store, name) in enumerate(files):
                        picture_HW3 = shrunk(decode(self.originals.stores[store].read(name), name), self.originals.short_side)
                        shapes[row] = picture_HW3.shape[:2]
                        target.write(np.ascontiguousarray(picture_HW3).data)
                    target.flush()
                    os.fsync(target.fileno())
                written = self.folder / f"{shard:05}.writing.npy"
                np.save(written, shapes)
                os.replace(written, _shapes(self.folder, shard))  # says that the pixels are complete
            except (UserError, OSError) as error:
                with suppress(OSError):  # a disk that is full wants its room back
                    _pixels(self.folder, shard).unlink(missing_ok=True)
                return error  # not raised: torch would put a traceback into its one line
        return len(files)


def _require_space(folder: Path, originals: _Originals) -> None:
    shapes, short = [], originals.short_side
    for place in evenly(len(originals.files), LOOKED_AT):
        store, name = originals.files[place]
        height, width = measured(originals.stores[store], name)
        shapes.append(resized_shape(height, width, short) if min(height, width) > short else (height, width))
    needed = 3 * np.prod(shapes, axis=1).mean() * len(originals.files)
    written = sum(file.stat().st_size for file in folder.iterdir())
    free = shutil.disk_usage(folder).free
    if needed > free + written:
        sizes = f"about {_size(needed)} are needed, {_size(free)} are free"
        raise UserError(f"data.cache={folder.parent}: {sizes}; choose another folder, or train without a cache")


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def _pixels(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05}.pixels"


def _shapes(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05}.npy"


def _bar() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one process at a time is in here; the lock goes with the process that holds it."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"data.cache={folder} cannot be written ({error.strerror or error}): choose another folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info(f"waiting for the process that builds the cache {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        except UserError:
            (folder / ".lock").unlink(missing_ok=True)
            with suppress(OSError):  # another cache is in it
                folder.rmdir()
            raise
