"""Where files of pictures lie: a folder, a zip or a tar, all read in place and by name."""

import bz2
import gzip
import io
import lzma
import os
import posixpath
import re
import tarfile
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mdcs.data.paths import Paths
from mdcs.errors import UserError

# HEIC and AVIF are among them to be refused by name rather than taken for other files
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".heic", ".heif")
HIDDEN = re.compile(r"(^|/)(\.|(__macosx|thumbs\.db|desktop\.ini)(/|$))", re.IGNORECASE)  # by a leading dot, or left by file managers
PLAIN_NAME = re.compile(r"[^/\\.][^/\\]*(/[^/\\.][^/\\]*)*")  # most are, and normalising takes longer than all else
STORED, DEFLATED, OTHER = 0, 8, -1  # how a member lies in an archive; the first two are the numbers of the zip format
MOST_IN_MEMORY = 4 << 30  # bytes that a compressed tar may unpack to
MOST_CONTENT = 2 << 30  # bytes of one file; a small archive can hold petabytes
BROKEN_ARCHIVE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, NotImplementedError)


class Store:
    """Files by name: relative to `root`, with "/" between the parts. Reads need no lock, and pickles are small: workers share one store.

    Hidden files and what file managers leave behind are not listed.
    """

    root: Path

    def listing(self) -> tuple[Sequence[str], list[str]]:
        """The names of all files and of all folders, both sorted."""
        raise NotImplementedError

    def names(self) -> list[str]:
        """The names of all files, sorted."""
        return list(self.listing()[0])

    def read(self, name: str, most: int | None = None) -> bytes:
        """The content of a file, or its first `most` bytes."""
        raise NotImplementedError

    def size(self, name: str) -> int:
        """Bytes of a file's content."""
        raise NotImplementedError


@dataclass(frozen=True)
class Directory(Store):
    """The files below a folder, through links too. A name may also be an absolute path."""

    root: Path

    def listing(self) -> tuple[Sequence[str], list[str]]:
        files: list[str] = []
        folders: list[str] = []
        self._walk("", {_identity(self.root)}, files, folders)
        return sorted(files), sorted(folders)

    def _walk(self, folder: str, above: set[tuple[int, int]], files: list[str], folders: list[str]) -> None:
        try:
            with os.scandir(self.root / folder) as scan:
                entries = list(scan)
        except OSError as error:
            raise UserError(f"{self.root / folder} cannot be listed ({error.strerror or error})") from error
        for entry in entries:
            name = folder + entry.name
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                identity = _identity(Path(entry.path))
                if identity in above:
                    continue  # a link to a folder that it lies in would be followed for ever
                folders.append(name)
                self._walk(f"{name}/", above | {identity}, files, folders)
            elif entry.is_file() or not os.path.exists(entry.path):  # a broken link is a file that cannot be read; a pipe is no file
                files.append(name)

    def read(self, name: str, most: int | None = None) -> bytes:
        try:
            with open(self.root / name, "rb", buffering=0) as file:
                if most is None:
                    _require_moderate(os.fstat(file.fileno()).st_size)
                return file.read(-1 if most is None else most) or b""
        except (OSError, ValueError) as error:
            raise _unreadable(self.root, name, error) from error

    def size(self, name: str) -> int:
        try:
            return os.stat(self.root / name).st_size
        except (OSError, ValueError) as error:
            raise _unreadable(self.root, name, error) from error


@dataclass(frozen=True, repr=False)
class Archive(Store):
    """The members of a zip or tar, found by an index, so that each is one read at its place and any process can do it.

    `places` (N, 5) int64, in the order of `files`: first byte, bytes there, bytes of content, how they lie, CRC-32 or −1. The first byte of
    a zip's member is that of its header.
    """

    root: Path
    files: Paths
    folders: list[str]
    places: np.ndarray = field(compare=False)
    is_zip: bool
    unpacked: bytes | None = field(default=None, compare=False)  # of a compressed tar

    def listing(self) -> tuple[Sequence[str], list[str]]:
        return self.files, self.folders

    def read(self, name: str, most: int | None = None) -> bytes:
        start, stored, size, method, crc = self._place(name)
        wanted = stored if most is None else min(stored, most + most // 100 + 64)  # what cannot be deflated grows a little
        try:
            if most is None:
                _require_moderate(size)
            if self.unpacked is not None:
                return self.unpacked[start : start + stored][:most]
            with open(self.root, "rb", buffering=0) as file:
                file.seek(start)
                if self.is_zip:  # the lengths of name and extra field may differ from those in the central directory
                    header = file.read(30)
                    file.seek(start + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"))
                content: bytes = file.read(wanted)
            if method == DEFLATED:
                content = zlib.decompressobj(-15).decompress(content, max(size, 1) if most is None else most)  # 0 means any number
            elif method != STORED:
                raise ValueError("it is encrypted, sparse, or packed in an unusual way; pack the pictures again")
            if most is None and (len(content) != size or (crc >= 0 and zlib.crc32(content) != crc)):
                raise ValueError("the archive is damaged here")
        except (OSError, ValueError, zlib.error, MemoryError) as error:
            raise _unreadable(self.root, name, error) from error
        return content[:most]

    def size(self, name: str) -> int:
        return self._place(name)[2]

    def _place(self, name: str) -> list[int]:
        row = bisect_left(self.files, name)
        if row == len(self.files) or self.files[row] != name:
            raise UserError(f"{self.root} has no {name}")
        place: list[int] = self.places[row].tolist()
        return place


def open_store(root: Path, or_else: str = "") -> Store:
    """The files of a folder, a zip or a tar; the index of an archive is read now. A compressed tar is unpacked into memory.

    `or_else` says what else the caller takes, for messages.
    """
    try:
        if root.is_dir():
            return Directory(root)
        if not root.exists():
            raise UserError(f"{root}: there is no such folder or file; expected a folder, a zip or a tar of pictures{or_else}")
        kind = "zip" if root.suffix.lower() == ".zip" or zipfile.is_zipfile(root) else "tar"
        if kind == "tar" and not (".tar" in root.name.lower() or root.suffix.lower() == ".tgz" or tarfile.is_tarfile(root)):
            raise UserError(f"{root}: expected a folder, a zip or a tar of pictures{or_else}")
        return _open_zip(root) if kind == "zip" else _open_tar(root)
    except BROKEN_ARCHIVE as error:
        if isinstance(error, UserError):
            raise
        reason = f"{root} cannot be read as a {kind} of pictures ({' '.join(str(error).split())})"
        cut = "; it looks cut short, as by a copy or download that was interrupted: fetch it again" if _is_cut(root, error) else ""
        raise UserError(reason + cut) from error


def is_picture(name: str) -> bool:
    """Whether a file's name says that it is a picture."""
    return name.lower().endswith(SUFFIXES)


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder that it lies in, is meant not to be seen, or was left behind by a file manager."""
    return HIDDEN.search(name) is not None


def _is_cut(root: Path, error: Exception) -> bool:
    """Whether the archive that `error` is about has the beginning of one and no end."""
    if root.is_file() and zipfile.BadZipFile is type(error):  # the index of a zip is its end
        with root.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    return isinstance(error, EOFError) or "end of data" in str(error)


def _identity(folder: Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _require_moderate(size: int) -> None:
    if size > MOST_CONTENT:
        raise ValueError(f"it has {size:,} bytes, at most {MOST_CONTENT:,} are read")


def _unreadable(root: Path, name: str, error: Exception) -> UserError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return UserError(f"{root}: {name} cannot be read ({reason})")


def _archive(root: Path, members: dict[str, tuple[int, ...]], folders: set[str], is_zip: bool, unpacked: bytes | None = None) -> Archive:
    """The index over what is not hidden; a folder may be there without an entry of its own."""
    hidden = {name for name in (*members, *folders) if is_hidden(name)}
    files = sorted(members.keys() - hidden)
    for folder in {name.rpartition("/")[0] for name in files} | (folders - hidden):
        parts = folder.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    places = np.array([members[name] for name in files], dtype=np.int64).reshape(len(files), 5)
    return Archive(root, Paths(files), sorted(folders - hidden - {"", "."}), places, is_zip, unpacked)


def _name(raw: str) -> str:
    """As other stores write it: some archives begin with "./", some made on Windows have backslashes."""
    return raw if PLAIN_NAME.fullmatch(raw) else posixpath.normpath(raw.replace("\\", "/")).lstrip("/")


def _zip(root: Path) -> zipfile.ZipFile:
    """Names without the mark of UTF-8 are UTF-8 nevertheless if they can be, as Info-ZIP writes them; otherwise as the format has it."""
    try:
        return zipfile.ZipFile(root, metadata_encoding="utf-8")
    except UnicodeDecodeError:
        return zipfile.ZipFile(root)


def _open_zip(root: Path) -> Archive:
    members: dict[str, tuple[int, ...]] = {}
    folders = set()
    with _zip(root) as archive:
        for info in archive.infolist():
            if info.is_dir() or info.filename.endswith("\\"):
                folders.add(_name(info.filename))
                continue
            method = info.compress_type if info.compress_type in (STORED, DEFLATED) and not info.flag_bits & 1 else OTHER
            members[_name(info.filename)] = (info.header_offset, info.compress_size, info.file_size, method, info.CRC)
    return _archive(root, members, folders, is_zip=True)


def _open_tar(root: Path) -> Archive:
    unpacked = _unpacked(root)
    members: dict[str, tuple[int, ...]] = {}
    folders, links = set(), {}
    with tarfile.open(root, "r:") if unpacked is None else tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep an object of a kilobyte for each
            name = _name(member.name)
            if member.isdir():
                folders.add(name)
            elif member.issym():
                links[name] = _name(posixpath.join(posixpath.dirname(name), member.linkname))
            elif member.islnk():
                links[name] = _name(member.linkname)
            elif member.isreg():
                method = STORED if member.sparse is None else OTHER
                members[name] = (member.offset_data, member.size, member.size, method, -1)
        size = root.stat().st_size if unpacked is None else len(unpacked)
        if size - archive.offset < tarfile.BLOCKSIZE:  # cut between members or in a header, which tarfile takes for the end
            raise EOFError("it lacks the zeros that end a tar")
    for name, target in links.items():
        if target in members:
            members[name] = members[target]
    return _archive(root, members, folders, is_zip=False, unpacked=unpacked)


def _unpacked(root: Path) -> bytes | None:
    """The tar within a compressed file; None where it is not compressed."""
    with root.open("rb") as file:
        start = file.read(6)
        openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
        if start.startswith(b"\x28\xb5\x2f\xfd"):
            raise ValueError("Zstandard is not supported; use .tar, .tar.gz or .zip")
        if (opener := openers.get(start[:2])) is None:
            return None
        file.seek(0)
        with opener(file, "rb") as packed:
            content: bytes = packed.read(MOST_IN_MEMORY + 1)
    if len(content) > MOST_IN_MEMORY:
        most = f"{MOST_IN_MEMORY >> 30} GiB"
        raise UserError(f"{root} unpacks to more than {most}: unpack it, or make it a .tar or .zip, which are read in place")
    return content
