"""Tables and lists as editors and spreadsheets write them."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from mdcs.errors import UserError

PATH_COLUMNS = ("path", "file", "filename", "image")  # names of the column that says where pictures are


def read_text(path: Path) -> str:
    """A text file as editors and spreadsheets write it: UTF-8 with or without a byte order mark, UTF-16 with one, else Windows-1252."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
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
