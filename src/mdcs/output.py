"""The file or folder that a verb is asked to write: refused before any work; a file is complete or absent after it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path

from mdcs.errors import UserError


def check_output(output: Path, suffixes: Sequence[str], overwrite: bool) -> None:
    """Refuse a place where the file cannot or should not be written."""
    if output.suffix.lower() not in suffixes:
        raise UserError(f"output={output}: expected a file that ends in {' or '.join(suffixes)}")
    if not output.parent.is_dir():
        raise UserError(f"output={output}: there is no folder {output.parent}; make it first")
    if output.is_dir():
        raise UserError(f"output={output} is a folder: give the name of a file")
    if output.exists() and not overwrite:
        raise UserError(f"output={output} exists already: choose another name, or set overwrite=true")
    if not os.access(output.parent, os.W_OK):
        raise UserError(f"output={output}: the folder {output.parent} may not be written to; choose another one")


def check_folder(word: str, folder: Path) -> None:
    """Refuse a `folder`, which `word` has named, that cannot be made or written to."""
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
    except OSError as error:
        raise UserError(f"{word}={folder} cannot be made ({error.strerror}); choose another place") from error
    if not there.is_dir():
        raise UserError(f"{word}={folder}: {there} is no folder; choose another place")
    if not os.access(there, os.W_OK):
        raise UserError(f"{word}={folder}: the folder {there} may not be written to; choose another place")


def numbered(output: Path) -> Path:
    """`output`; where that exists already, the first of <name>_2, <name>_3, ... that does not."""
    names = chain([output], (output.with_stem(f"{output.stem}_{number}") for number in count(2)))
    return next(place for place in names if not place.exists())


@contextmanager
def complete_or_absent(output: Path) -> Iterator[Path]:
    """A place beside `output` to write to, synced and renamed at the end. After an error or an interrupt nothing of it is left."""
    part = output.with_name(f".{output.stem}.{os.getpid()}.part{output.suffix}")
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, output)
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
