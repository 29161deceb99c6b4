"""Tables and lists as editors and spreadsheets write them."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from mdcs.errors import UserError

LOOKED_AT = 2**16  # bytes, for one that no text has
PATH_COLUMNS = ("path", "file", "filename", "image")  # names of the column that says where pictures are


def read_text(path: Path) -> str:
    """A text file as editors and spreadsheets write it: UTF-8 with or without a byte order mark, UTF-16 with one, else Windows-1252."""
    try:
        content = path.read_bytes()
    except OSError as error:
        what = "is a folder: expected a file" if path.is_dir() else f"cannot be read ({error.strerror or error})"
        raise UserError(f"{path} {what}") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    if b"\0" in content[:LOOKED_AT]:
        raise UserError(f"{path} is no text: expected a table as text, such as CSV")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def rows_of(text: str, columns: Sequence[str] = ()) -> list[list[str]]:
    """The rows of a table whose separator is a comma, semicolon, tab or bar: the one that gives the first row most of `columns`."""
    first = text.split("\n", 1)[0]

    def fitness(separator: str) -> tuple[int, int]:
        cells = [cell.strip(' "\r').lower() for cell in first.split(separator)]
        return sum(cell in columns for cell in cells), len(cells)

    separator = max(",;\t|", key=fitness)
    return [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if any(row)]
