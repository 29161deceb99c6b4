"""What somebody wants classified: pictures in a folder or archive, at any depth, one picture, or a list of them."""

from pathlib import Path

from mdcs.data.store import SUFFIXES, Directory, Store, is_picture, open_store
from mdcs.data.text import PATH_COLUMNS, read_text, rows_of
from mdcs.errors import UserError

LIST_SUFFIXES = {".csv", ".tsv", ".txt", ".lst"}
OR_ELSE = ", a list of their paths (.txt, .csv), or one picture (.jpg, .png, ...)"


def pictures_of(path: Path) -> tuple[Store, list[str], list[str]]:
    """What to predict: the store, the names of all pictures in it at any depth, and the names of files left out as no pictures.

    `path` is a folder, a zip, a tar, one picture, or a list (.txt: one path a line, a label may follow as in the published lists; .csv: the
    column path or file, else the first). The paths of a list are absolute or relative to its folder, and are not looked at here.
    """
    suffix = path.suffix.lower()
    if path.is_file() and suffix in LIST_SUFFIXES:
        return Directory(path.parent), _listed_paths(path), []
    if path.is_file() and suffix in SUFFIXES:
        return Directory(path.parent), [path.name], []
    wildcard = not path.exists() and set("*?[") & set(str(path))
    store = open_store(path, OR_ELSE + "; wildcards are not followed: give the folder" * bool(wildcard))
    names = store.names()
    return store, [name for name in names if is_picture(name)], [name for name in names if not is_picture(name)]


def _listed_paths(path: Path) -> list[str]:
    text = read_text(path)
    if path.suffix.lower() in {".txt", ".lst"}:
        paths = [_without_label(line.strip()) for line in text.split("\n")]  # splitlines would cut names at rarer separators, too
    else:
        rows = rows_of(text, PATH_COLUMNS)
        header = [cell.lower() for cell in rows[0]] if rows else []
        column = next((header.index(name) for name in PATH_COLUMNS if name in header), 0)
        paths = [row[column] for row in rows[1 if header and not is_picture(header[column]) else 0 :] if len(row) > column]
    if not any(paths):
        raise UserError(f"{path} lists no pictures: expected one path a line, or a column named path")
    return [name for name in paths if name]


def _without_label(line: str) -> str:
    """The path in a line such as "val/n01440764/1.JPEG 7"."""
    path, _, label = line.replace("\t", " ").rpartition(" ")
    return line[: len(path)].rstrip() if label.isdecimal() and is_picture(path.rstrip()) else line
