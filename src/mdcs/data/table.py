"""Own pictures listed in a table: path, label and, if wanted, split and numbers that stand beside each picture."""

import math
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mdcs.data.folder import Folder, Own
from mdcs.data.paths import Paths
from mdcs.data.splits import listed, several
from mdcs.data.store import Archive, Directory, Store, open_store
from mdcs.data.survey import evenly
from mdcs.data.text import PATH_COLUMNS, read_text, rows_of
from mdcs.data.tree import SPLITS, Part, in_order
from mdcs.errors import UserError

COLUMNS = {"path": PATH_COLUMNS, "label": ("label", "class"), "split": ("split",)}
NOT_KNOWN = {"", "na", "n/a", "nan", "null", "none", "?"}
LOOKED_FOR = 100  # paths, to find out which folder they are relative to


@dataclass(frozen=True)
class Table(Folder):
    """A table with a first row of column names: `path`, `label`, `split` (train, val, test) where it is given, and columns of numbers.

    Separated by commas, semicolons, tabs or bars, in UTF-8, UTF-16 or Windows-1252. Paths are absolute, or relative to `root` (a folder,
    a zip or tar, or the one folder at its top) or to the table's folder. Without the column `split`, or without val in it, `val_fraction`
    of each class is set aside. Every other column of numbers becomes meta data, NaN where its cell is empty. The other settings are those
    of a folder.
    """

    file: str | None = None

    def listed(self) -> Own:
        """The rows of the table, by split."""
        if self.file is None:
            raise UserError("data.file is missing: set it to a table with the columns path and label")
        file = Path(self.file)
        known = [name for names in COLUMNS.values() for name in names]
        header, *rows = rows_of(read_text(file), known) or [[]]
        header = [name.lower() for name in header]
        place = {column: next((header.index(name) for name in names if name in header), -1) for column, names in COLUMNS.items()}
        if twice := [name for name in known if header.count(name) > 1]:
            raise UserError(f"{file}: {header.count(twice[0])} columns are called {twice[0]}, expected one")
        if place["path"] < 0 or place["label"] < 0 or not rows:
            found = f"the columns {', '.join(header)}, {several(len(rows), 'further row')}" if header else "nothing"
            raise UserError(f"{file}: expected a table with the columns path and label, and split if wanted, but it has {found}")
        for number, row in enumerate(rows, start=2):
            if len(row) != len(header):
                raise UserError(f"{file}: row {number} has {len(row)} cells, the first row {len(header)}")
            if not row[place["path"]] or not row[place["label"]]:
                raise UserError(f"{file}: row {number} lacks its {'label' if row[place['path']] else 'path'}")
        paths = [posixpath.normpath(row[place["path"]].replace("\\", "/")) for row in rows]
        labels = [row[place["label"]] for row in rows]
        splits = ["train"] * len(rows) if place["split"] < 0 else _splits([row[place["split"]] for row in rows], file)
        others = [column for column in range(len(header)) if column not in place.values()]
        meta, notes = _meta({header[column]: [row[column] for row in rows] for column in others})
        kept, repeated = _once(paths, labels, splits, file)
        notes += [f"left out of {file}: {several(repeated, 'row')} that repeat a picture"] if repeated else []

        names = in_order(labels)
        label_of = {name: label for label, name in enumerate(names)}
        label_N = np.array([label_of[label] for label in labels], dtype=np.int64)
        split_N = np.array(splits)
        store, above = self._store(file, paths)
        parts = {}
        for split in ("train", "val", "test"):
            of_split = kept[split_N[kept] == split]
            if len(of_split):
                part_meta = None if meta is None else meta[of_split]
                parts[split] = Part(label_N[of_split], Paths(above + paths[row] for row in of_split), part_meta)
        if "train" not in parts:
            raise UserError(f"{file}: no row has the split train")
        return Own(store, names, parts, tuple(notes))

    def _store(self, file: Path, paths: Sequence[str]) -> tuple[Store, str]:
        """`root`, the one folder at the top of an archive, or the table's folder: where most of the paths lead to files.

        The second is what stands before the paths there.
        """
        places: list[tuple[Store, str]] = []
        if self.root is not None:
            places.append((open_store(Path(self.root)), ""))
            if isinstance(archive := places[0][0], Archive) and len(tops := {name.partition("/")[0] for name in archive.files}) == 1:
                places.append((archive, f"{tops.pop()}/"))
        places.append((Directory(file.parent), ""))
        some = [paths[row] for row in evenly(len(paths), LOOKED_FOR)]
        found = [sum(_is_there(store, above + path) for path in some) for store, above in places]
        if any(found):
            return places[found.index(max(found))]
        looked = " nor ".join(str(store.root) for store, above in places if not above)
        raise UserError(f"{file}: its paths, such as {some[0]}, are not in {looked}: set data.root=... to what they are relative to")


def _is_there(store: Store, path: str) -> bool:
    try:
        store.size(path)
    except UserError:
        return False
    return True


def _splits(cells: Sequence[str], file: Path) -> list[str]:
    for number, cell in enumerate(cells, start=2):
        if cell.lower() not in SPLITS:
            raise UserError(f"{file}: row {number} has the split {cell!r}, expected train, val or test")
    return [SPLITS[cell.lower()] for cell in cells]


def _meta(columns: dict[str, list[str]]) -> tuple[np.ndarray | None, list[str]]:
    """The columns of numbers (N, M) float32, and what to say."""
    numbers = {}
    for name, cells in columns.items():
        try:
            values = [math.nan if cell.lower() in NOT_KNOWN else float(cell) for cell in cells]
        except ValueError:
            continue
        if not all(math.isnan(value) for value in values):
            numbers[name] = values
    others = [name for name in columns if name not in numbers]
    notes = [f"meta data: {listed(list(numbers))}"] if numbers else []
    notes += [f"columns that hold no numbers were left out: {listed(others)}"] if others else []
    return (np.array(list(numbers.values()), dtype=np.float32).T.copy() if numbers else None), notes


def _once(paths: Sequence[str], labels: Sequence[str], splits: Sequence[str], file: Path) -> tuple[np.ndarray, int]:
    """The rows that do not repeat a picture of their split, and how many do."""
    label_of: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    kept = []
    for row, (path, label, split) in enumerate(zip(paths, labels, splits, strict=True)):
        if label_of.setdefault(path, label) != label:
            raise UserError(f"{file}: {path} has the labels {label_of[path]!r} and {label!r}; expected one label for each picture")
        if (path, split) not in seen:
            seen.add((path, split))
            kept.append(row)
    return np.array(kept, dtype=np.int64), len(paths) - len(kept)
