"""Pictures in class folders: which folder is a class, which a split, and what is left out."""

import os
import re
from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

import numpy as np

from mdcs.data.paths import Paths
from mdcs.data.splits import listed, several
from mdcs.data.store import Store, is_picture
from mdcs.errors import UserError

LAYOUT = "<class>/<picture>, or train/<class>/<picture> with val/ and test/ beside it"
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
UNDECODABLE = re.compile("[\udc80-\udcff]")  # how Python shows other bytes; a run's files are UTF-8 and cannot hold such names


class Part(NamedTuple):
    """The pictures of one split by name, class after class, each in sorted order."""

    labels: np.ndarray  # (N,) int64
    paths: Paths  # (N)
    meta: np.ndarray | None = None  # (N, M) float32


class Tree(NamedTuple):
    """Class folders as they lie in a store."""

    names: tuple[str, ...]  # (C) of all class folders, those without pictures too
    parts: dict[str, Part]  # "train", "val", "test", or "train" alone where there are no split folders
    notes: tuple[str, ...]


def class_tree(store: Store) -> Tree:
    """The class folders of `store`, or of the one folder in it that holds them. A class is the first folder below its split.

    Split folders are told by name, in any case: train or training; val, valid or validation; test or testing. Without a train folder of
    class folders every folder is a class.
    """
    files, folders = store.listing()
    if odd := list(filter(UNDECODABLE.search, chain(folders, filter(is_picture, files)))):
        first, more = os.fsencode(odd[0]).decode("utf-8", "backslashreplace"), f" (and {len(odd) - 1} more)" * (len(odd) > 1)
        raise UserError(
            f"{store.root}: the name {first} is not UTF-8{more}: rename what is called so (the program convmv does many at once)"
        )
    pictures_in: dict[str, list[str]] = {}
    others = []
    for name in files:
        if is_picture(name):
            pictures_in.setdefault(name.rpartition("/")[0], []).append(name)
        else:
            others.append(name)
    base, split_folders = _places(pictures_in, store)
    names = in_order({name for of in split_folders.values() for name in _tops(folders, of)})
    label_of = {name: label for label, name in enumerate(names)}
    parts, astray, nested = {}, dict(pictures_in), []
    for split, folder in split_folders.items():
        of_class: list[list[str]] = [[] for _ in names]
        for lies_in in sorted(pictures_in):
            top, _, deeper = lies_in.removeprefix(folder).partition("/")
            if lies_in.startswith(folder) and top:
                of_class[label_of[top]] += astray.pop(lies_in)
                if deeper:
                    nested.append(lies_in)
        labels = np.repeat(np.arange(len(names), dtype=np.int64), [len(of) for of in of_class])
        parts[split] = Part(labels, Paths(name for of in of_class for name in sorted(of)))
    if not any(len(part.labels) for part in parts.values()):
        where = f"its pictures lie in no class folder, such as {files[0]}" if astray else "no picture was found"
        raise UserError(f"{store.root}: expected {LAYOUT}, but {where}")
    notes = []
    if base:
        notes.append(f"{store.root}: the pictures are those in {base}")
    if nested:
        notes.append(f"a class is the first folder: pictures in {nested[0]} are of class '{_first(nested[0], split_folders.values())}'")
    if astray:
        some = listed([f"{folder or 'at the top'} ({len(of)})" for folder, of in sorted(astray.items())], 3)
        outside = several(sum(map(len, astray.values())), "picture")
        notes.append(f"left out of {store.root}: {outside} in no class folder: {some}")
    others = [name for name in others if _first(name.rpartition("/")[0], split_folders.values())]
    if others:
        notes.append(f"left out of {store.root}: {several(len(others), 'file')} of other kinds than pictures, the first being {others[0]}")
    return Tree(names, parts, tuple(notes))


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Class names sorted, as numbers where all are whole numbers."""
    distinct = set(names)
    if all(name.isascii() and name.isdigit() for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))


def _places(pictures_in: dict[str, list[str]], store: Store) -> tuple[str, dict[str, str]]:
    """The folder that holds all, "" or ending in "/", and the folder of each split, likewise."""
    below = _below(pictures_in)
    base = ""
    while True:
        tops = below.get(base, [])
        if splits := _split_folders(below, base, store):
            return base, splits
        inside = [top for top in tops if _split_folders(below, f"{base}{top}/", store)]
        if len(inside) > 1:
            several = ", ".join(f"{base}{top}/" for top in inside)
            raise UserError(f"{store.root}: expected {LAYOUT}, here or inside one folder, but several do: {several}; set data.root to one")
        single = inside or (tops if len(tops) == 1 and not pictures_in.get(base.rstrip("/")) else [])
        if not single or f"{base}{single[0]}/" not in below:
            if len(tops) > 1 and all(top.lower() in SPLITS for top in tops):
                has_train = any(SPLITS[top.lower()] == "train" for top in tops)
                lacking = "its train/ holds no class folders" if has_train else f"it has {', '.join(tops)} and no train/"
                raise UserError(f"{store.root}: expected {LAYOUT}, but {lacking}")
            return base, {"train": base}
        base += f"{single[0]}/"


def _below(pictures_in: Iterable[str]) -> dict[str, list[str]]:
    """The folders directly below each folder ("" or ending in "/"), sorted: those on the way to pictures."""
    found: dict[str, set[str]] = {}
    for folder in pictures_in:
        base = ""
        for name in folder.split("/") if folder else ():
            found.setdefault(base, set()).add(name)
            base += f"{name}/"
    return {base: sorted(names) for base, names in found.items()}


def _split_folders(below: dict[str, list[str]], base: str, store: Store) -> dict[str, str]:
    """The folder of each split below `base`; none without a train folder that holds class folders."""
    found: dict[str, str] = {}
    for top in below.get(base, ()):
        split = SPLITS.get(top.lower())
        if split is None or f"{base}{top}/" not in below:
            continue
        if split in found:
            raise UserError(f"{store.root}: {found[split]} and {base}{top}/ would both be the {split} split: keep one")
        found[split] = f"{base}{top}/"
    return {split: found[split] for split in ("train", "val", "test") if split in found} if "train" in found else {}


def _tops(folders: Iterable[str], base: str) -> list[str]:
    """The folders directly below `base`, sorted."""
    return sorted({folder[len(base) :].partition("/")[0] for folder in folders if folder.startswith(base) and len(folder) > len(base)})


def _first(folder: str, bases: Iterable[str]) -> str:
    """The class that files in `folder` would be of; "" for none."""
    return next((folder.removeprefix(base).partition("/")[0] for base in bases if folder.startswith(base)), "")
