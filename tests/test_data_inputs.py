"""What is to be classified, found in folders, archives and lists."""

from pathlib import Path

import pytest

from container_cases import FILES, HIDDEN, write
from mdcs.data.inputs import pictures_of
from mdcs.data.store import Store
from mdcs.errors import UserError


def listed(path: Path) -> tuple[Store, list[str], list[str]]:
    store, names, skipped = pictures_of(path)
    for name in names:
        store.read(name)
    return store, names, skipped


@pytest.mark.parametrize("kind", ["folder", "stored.zip", "plain.tar"])
def test_pictures_at_any_depth(tmp_path: Path, kind: str) -> None:
    _, names, skipped = listed(write(tmp_path, kind, FILES | HIDDEN))
    assert names == [name for name in sorted(FILES) if not name.endswith(".txt")] and skipped == ["b/notes.txt"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.txt", b"b/c/deep.png\r\n\r\n top.jpg \r\n"),
        ("list.txt", "b/c/deep.png\ntop.jpg".encode("utf-16")),
        ("list.csv", b"path,label\nb/c/deep.png,x\ntop.jpg,y\n"),
        ("list.csv", b"\xef\xbb\xbflabel;Path\nx;b/c/deep.png\ny;top.jpg\n"),
        ("list.csv", b"b/c/deep.png\ntop.jpg\n"),
        ("list.csv", b"picture\nb/c/deep.png\ntop.jpg\n"),
        ("list.csv", b"id,filename\n7,b/c/deep.png\n8,top.jpg\n"),
        ("list.txt", b"b/c/deep.png 12\ntop.jpg\t0\n"),
        ("list.tsv", b'path\twho\n"b/c/deep.png"\tme, you\ntop.jpg\tme\n'),
    ],
)
def test_lists_of_pictures(tmp_path: Path, name: str, content: bytes) -> None:
    root = write(tmp_path, "folder", FILES)
    (root / name).write_bytes(content)
    _, names, skipped = listed(root / name)
    assert names == ["b/c/deep.png", "top.jpg"] and skipped == []


def test_one_picture_absolute_paths_and_empty_lists(tmp_path: Path) -> None:
    root = write(tmp_path, "folder", FILES)
    assert listed(root / "Ähre" / "图片 1.jpg")[1] == ["图片 1.jpg"]
    (tmp_path / "list.txt").write_text(str(root / "top.jpg"))
    store, names, _ = listed(tmp_path / "list.txt")
    assert store.read(names[0]) == b"top"
    (tmp_path / "list.txt").write_text("one\u2028name.jpg\nother.jpg", encoding="utf-8")
    assert pictures_of(tmp_path / "list.txt")[1] == ["one\u2028name.jpg", "other.jpg"]
    (tmp_path / "list.txt").write_text("day 1\nmy top.jpg\n7")
    assert pictures_of(tmp_path / "list.txt")[1] == ["day 1", "my top.jpg", "7"]
    (tmp_path / "list.txt").write_text("\n\n")
    with pytest.raises(UserError, match="lists no pictures"):
        pictures_of(tmp_path / "list.txt")


def test_what_is_no_input_is_told_what_would_be_one(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"top")
    told = r": expected a folder, a zip or a tar of pictures, a list of their paths \(.txt, .csv\), or one picture \(.jpg, .png, ...\)"
    with pytest.raises(UserError, match="photo" + told + "$"):
        pictures_of(tmp_path / "photo")
    with pytest.raises(UserError, match=r"\*.jpg: there is no such .*; wildcards are not followed: give the folder$"):
        pictures_of(tmp_path / "*.jpg")
    with pytest.raises(UserError, match=r"nothing: there is no such folder or file; .*, \.\.\.\)$"):
        pictures_of(tmp_path / "nothing")
