"""One set of files in every container gives the same names and bytes; damage and oddities are told in one line."""

import io
import os
import pickle
import tarfile
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from container_cases import FILES, FOLDERS, HIDDEN, KINDS, PACKED, RANDOM, write
from mdcs.data import store as module
from mdcs.data.store import open_store
from mdcs.errors import UserError


@pytest.mark.parametrize("kind", KINDS)
def test_every_container_gives_the_same(tmp_path: Path, kind: str) -> None:
    store = open_store(write(tmp_path, kind, FILES | HIDDEN))
    files, folders = store.listing()
    assert list(files) == sorted(FILES) == store.names() and folders == FOLDERS
    for again in (store, pickle.loads(pickle.dumps(store))):
        for name, content in FILES.items():
            assert again.read(name) == content and again.size(name) == len(content)
            assert again.read(name, 100) == content[:100]
    with pytest.raises(UserError, match=r"no such\.jpg") as caught:
        store.read("no such.jpg")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"no such\.jpg"):
        store.size("no such.jpg")


@pytest.mark.parametrize("kind", ["folder", "deflated.zip", "plain.tar"])
def test_threads_read_at_once(tmp_path: Path, kind: str) -> None:
    files = {f"{number:03}.png": RANDOM.bytes(1000 + number) for number in range(200)}
    store = open_store(write(tmp_path, kind, files))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(store.read, sorted(files))) == [files[name] for name in sorted(files)]


def test_a_forked_process_reads_without_disturbing_its_parent(tmp_path: Path) -> None:
    store = open_store(write(tmp_path, "plain.tar", FILES))
    child = os.fork()
    if child == 0:
        os._exit(0 if all(store.read(name) == content for name, content in list(FILES.items()) * 50) else 1)
    assert all(store.read(name) == content for name, content in list(FILES.items()) * 50)
    assert os.waitpid(child, 0)[1] == 0


# ---- folders


def test_links_are_followed_but_not_round_and_round(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    (root / "a").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "1.jpg").write_bytes(b"1")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "here").symlink_to(root / "a")
    (root / "b").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)
    (root / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(root / "a" / "pipe.jpg")  # reading it would wait for ever
    store = open_store(root)
    assert store.names() == ["a/gone.jpg", "b/1.jpg"]
    assert store.read("b/1.jpg") == b"1"
    with pytest.raises(UserError, match=r"a/gone\.jpg cannot be read \(No such file"):
        store.read("a/gone.jpg")


def test_absolute_names_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    assert open_store(tmp_path / "empty").read(str(tmp_path / "x.jpg")) == b"x"


# ---- archives


def test_backslashes_and_repeated_members(tmp_path: Path) -> None:
    path = tmp_path / "windows.zip"
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for name, content in (("train\\a\\1.jpg", b"1"), ("b/2.jpg", b"old"), ("b/2.jpg", b"new")):
            archive.writestr(zipfile.ZipInfo(name), content)
    store = open_store(path)
    assert store.names() == ["b/2.jpg", "train/a/1.jpg"]
    assert store.read("b/2.jpg") == b"new" and store.read("train/a/1.jpg") == b"1"


@pytest.mark.parametrize(
    ("raw", "name"), [("Äpfel/日本.jpg".encode(), "Äpfel/日本.jpg"), ("Äpfel/1.jpg".encode("cp437"), "Äpfel/1.jpg")], ids=["UTF-8", "cp437"]
)
def test_names_in_a_zip_without_the_mark_of_utf8(raw: bytes, name: str, tmp_path: Path) -> None:
    """As Info-ZIP writes them on Linux, and as the format has it."""
    path = tmp_path / "unmarked.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("x" * len(raw)), b"content")
    path.write_bytes(path.read_bytes().replace(b"x" * len(raw), raw))
    store = open_store(path)
    assert store.names() == [name] and store.read(name) == b"content"


def test_links_in_a_tar(tmp_path: Path) -> None:
    path = tmp_path / "links.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("a/1.jpg")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"one"))
        for name, kind, target in (
            ("b/hard.jpg", tarfile.LNKTYPE, "a/1.jpg"),
            ("b/soft.jpg", tarfile.SYMTYPE, "../a/1.jpg"),
            ("b/gone.jpg", tarfile.SYMTYPE, "2.jpg"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    store = open_store(path)
    assert store.names() == ["a/1.jpg", "b/hard.jpg", "b/soft.jpg"]
    assert store.read("b/hard.jpg") == store.read("b/soft.jpg") == b"one"


def test_a_zip_behind_other_bytes(tmp_path: Path) -> None:
    path = write(tmp_path, "deflated.zip", FILES)
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    assert open_store(path).read("Ähre/图片 1.jpg") == FILES["Ähre/图片 1.jpg"]


@pytest.mark.parametrize("kind", ["stored.zip", "deflated.zip"])
def test_changed_bytes_in_a_zip_are_noticed(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind, FILES)
    content = bytearray(path.read_bytes())
    content[600] ^= 255  # within the first picture
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"图片 1\.jpg cannot be read \("):
        open_store(path).read("Ähre/图片 1.jpg")
    assert open_store(path).read("top.jpg") == b"top"


def test_encrypted_and_oddly_packed_members(tmp_path: Path) -> None:
    path = tmp_path / "odd.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", b"a" * 100, zipfile.ZIP_BZIP2)
        archive.writestr("b.jpg", b"b" * 100)
    content = path.read_bytes()
    encrypted = content.rindex(b"PK\x01\x02") + 8  # the flags of b.jpg in the central directory
    path.write_bytes(content[:encrypted] + b"\x01" + content[encrypted + 1 :])
    for name in ("a.jpg", "b.jpg"):
        with pytest.raises(UserError, match=rf"{name} cannot be read \(it is encrypted.*pack the pictures again"):
            open_store(path).read(name)


@pytest.mark.parametrize("kind", PACKED)
def test_half_an_archive(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind, {"a.jpg": RANDOM.bytes(40_000), "b.jpg": RANDOM.bytes(40_000)})
    path.write_bytes(path.read_bytes()[:60_000])
    with pytest.raises(UserError, match=r"cannot be read as a (zip|tar) of pictures \(.*it looks cut short.*fetch it again$") as caught:
        open_store(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [1024, 1100, 2048, 2560, 2559])  # after a.jpg, in the header of b.jpg, after b.jpg, after all, before
def test_a_tar_without_its_end(tmp_path: Path, length: int) -> None:
    path = write(tmp_path, "plain.tar", {"a.jpg": b"a", "b.jpg": b"b"})
    path.write_bytes(path.read_bytes()[:3072])
    open_store(path)  # a single block of zeros is enough
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match="it looks cut short"):
        open_store(path)


def test_what_is_no_container(tmp_path: Path) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes(b"hello")
    with pytest.raises(UserError, match="expected a folder, a zip or a tar of pictures"):
        open_store(other)
    with pytest.raises(UserError, match="there is no such folder or file"):
        open_store(tmp_path / "nowhere")
    zstandard = tmp_path / "x.tar.zst"
    zstandard.write_bytes(b"\x28\xb5\x2f\xfd123")
    with pytest.raises(UserError, match="Zstandard is not supported"):
        open_store(zstandard)


def test_a_compressed_tar_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "x.tar.gz", {"zeros.jpg": bytes(100_000)})
    monkeypatch.setattr(module, "MOST_IN_MEMORY", 100_000)
    with pytest.raises(UserError, match=r"unpacks to more than .*make it a \.tar or \.zip"):
        open_store(path)
    monkeypatch.setattr(module, "MOST_IN_MEMORY", 200_000)
    assert open_store(path).size("zeros.jpg") == 100_000


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    os.truncate(tmp_path / "a.jpg", 3 << 30)  # most of it takes no place on the disk
    with pytest.raises(UserError, match=r"a\.jpg cannot be read \(it has 3,221,225,472 bytes, at most 2,147,483,648 are read"):
        open_store(tmp_path).read("a.jpg")
    assert open_store(tmp_path).read("a.jpg", 2) == b"1\0"


def test_a_member_is_never_unpacked_to_more_than_it_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.jpg", bytes(50_000_000))
    monkeypatch.setattr(module, "MOST_CONTENT", 49_999_999)
    with pytest.raises(UserError, match=r"zeros\.jpg cannot be read \(it has 50,000,000 bytes, at most 49,999,999 are read"):
        open_store(path).read("zeros.jpg")
    assert open_store(path).read("zeros.jpg", 10) == bytes(10)
    content = path.read_bytes()
    size = content.rindex(b"PK\x01\x02") + 24  # of the content, in the central directory
    path.write_bytes(content[:size] + bytes(4) + content[size + 4 :])
    tracemalloc.start()
    with pytest.raises(UserError, match=r"zeros\.jpg cannot be read \(the archive is damaged here"):
        open_store(path).read("zeros.jpg")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 5_000_000
