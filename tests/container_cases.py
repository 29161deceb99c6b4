"""The same files in every container that pictures may come in."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import numpy as np

RANDOM = np.random.RandomState(0)
FILES = {
    "Ähre/图片 1.jpg": RANDOM.bytes(5000),
    "b/c/deep.png": b"x" * 3000,
    "b/empty.png": b"",
    "b/notes.txt": b"not a picture",
    "top.jpg": b"top",
}
HIDDEN = {"b/.DS_Store": b"1", "__MACOSX/b/._x.jpg": b"2", ".git/x.jpg": b"3", "b/Thumbs.db": b"4"}
FOLDERS = ["b", "b/c", "leer", "Ähre"]
KINDS = ["folder", "stored.zip", "deflated.zip", "plain.tar", "x.tar.gz", "x.tgz", "x.tar.bz2", "x.tar.xz", "named.pictures"]
PACKED = KINDS[1:]


def tar_bytes(files: dict[str, bytes], prefix: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        empty = tarfile.TarInfo(f"{prefix}leer")
        empty.type = tarfile.DIRTYPE
        archive.addfile(empty)
    return buffer.getvalue()


def write(folder: Path, kind: str, files: dict[str, bytes]) -> Path:
    path = folder / f"Größe=1, {kind}"
    if kind == "folder":
        (path / "leer").mkdir(parents=True)
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    elif kind.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if "deflated" in kind else zipfile.ZIP_STORED) as archive:
            archive.writestr("leer/", b"")
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        pack = {"gz": gzip.compress, "tgz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(kind.rpartition(".")[2], bytes)
        path.write_bytes(pack(tar_bytes(files, "./")))  # the form of `tar c .`
    return path
