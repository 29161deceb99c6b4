"""Looks at pictures before they are trained on: how large they are, which cannot be read, which lie in two splits."""

import hashlib
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from mdcs.data.decode import measured
from mdcs.data.splits import Survey, several
from mdcs.data.store import Store
from mdcs.errors import UserError

SIZES = (32, 64, 128, 224)  # pixels, that image_size=auto chooses from
LOOKED_AT = 1_000  # pictures of a survey
MOST_COMPARED = 200_000  # pictures that are searched for duplicates; more would delay the start by minutes
SECONDS_UNTIL_BAR = 2.0
COPIES = "too, byte for byte"  # the mark of a sentence on duplicates
THREADS = 8
CHUNK = 32  # pictures that a thread takes at once
T = TypeVar("T")


def suitable_size(side: float) -> int:
    """The side of the squares that suits pictures whose short side is `side` pixels in the median: the nearest of 32, 64, 128 and 224."""
    return min(SIZES, key=lambda size: abs(size - side))


def survey(store: Store, paths: Sequence[str], divided: str) -> Survey:
    """Headers of up to 1,000 of the pictures, evenly spread. UserError if none of them can be read. `divided` says into which splits."""
    chosen = evenly(len(paths), LOOKED_AT)

    def look(place: int) -> int | str:
        try:
            return min(measured(store, paths[int(chosen[place])]))
        except UserError as error:
            return str(error)

    found = list(in_threads(look, len(chosen), "looking at pictures"))
    sides = [side for side in found if isinstance(side, int)]
    if not sides:
        raise UserError(f"{store.root}: none of {len(found)} pictures can be read: {found[0]}")
    median = int(np.median(sides))
    spread = f", from {min(sides)} to {max(sides)}" if min(sides) < max(sides) else ""
    lines = (
        f"{store.root}: {divided}",
        f"short side: {several(median, 'pixel')} in the median of {several(len(sides), 'picture')}{spread}",
    )
    return Survey(suitable_size(median), len(paths), lines)


def refusals(use: Callable[[int], object], positions: np.ndarray, what: str) -> dict[int, str]:
    """Why `use(position)` refused, by position. Only a UserError is a refusal."""

    def attempt(place: int) -> str | None:
        try:
            use(int(positions[place]))
        except UserError as error:
            return str(error).removesuffix(": replace or remove it")
        return None

    answers = in_threads(attempt, len(positions), what)
    return {int(position): answer for position, answer in zip(positions, answers, strict=True) if answer is not None}


def duplicates(store: Store, splits: Mapping[str, Sequence[str]]) -> list[str]:
    """Sentences on pictures that lie in two splits, byte for byte: sizes are compared first, then beginnings, then the whole.

    Nothing is looked for in more than 200,000 pictures.
    """
    files = [(split, name) for split, names in splits.items() for name in names] if sum(map(len, splits.values())) <= MOST_COMPARED else []
    steps: tuple[Callable[[str], object], ...] = (
        store.size,
        lambda name: zlib.crc32(store.read(name, 4096)),
        lambda name: hashlib.sha256(store.read(name)).digest(),
    )
    groups = [files]
    for step in steps:
        keys = iter(_keys(step, [name for group in groups for _, name in group]))
        alike: dict[tuple[int, object], list[tuple[str, str]]] = {}
        for number, group in enumerate(groups):
            for file in group:
                if (key := next(keys)) is not None:
                    alike.setdefault((number, key), []).append(file)
        groups = [group for group in alike.values() if len({split for split, _ in group}) > 1]
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for group in groups:
        first = {split: name for split, name in reversed(group)}
        in_splits = [split for split in splits if split in first]
        for other in in_splits[1:]:
            pairs = found.setdefault((other, in_splits[0]), [])
            pairs += [(name, first[in_splits[0]]) for split, name in group if split == other]
    return [
        f"{several(len(pairs), 'picture')} of {held_out} {'is' if len(pairs) == 1 else 'are'} in {split} {COPIES}, the first being "
        f"{pairs[0][0]} = {pairs[0][1]}: "
        f"scores on {held_out} are too good"
        for (held_out, split), pairs in found.items()
    ]


def evenly(total: int, most: int) -> np.ndarray:
    """Up to `most` of the positions 0 .. total − 1, evenly spread."""
    return np.linspace(0, total - 1, min(total, most)).round().astype(np.int64)


def in_threads(function: Callable[[int], T], count: int, what: str) -> Iterator[T]:
    """`function(0)` .. `function(count − 1)` in that order, by several threads; a bar at the terminal if it takes long."""
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        yield from _shown(pool.map(lambda chunk: [function(place) for place in chunk], chunks), count, what)


def _shown(chunks: Iterator[list[T]], total: int, what: str) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import Progress

    started, done = time.perf_counter(), 0
    quiet = not sys.stderr.isatty() or os.environ.get("LOCAL_RANK", "0") != "0"
    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task(what, total=total, visible=False)
        for chunk in chunks:
            yield from chunk
            done += len(chunk)
            bar.update(task, completed=done, visible=time.perf_counter() - started > SECONDS_UNTIL_BAR)


def _keys(step: Callable[[str], object], names: Sequence[str]) -> Iterator[object]:
    """`step` of each file; None for one that cannot be read, which is told elsewhere."""

    def key(place: int) -> object:
        try:
            return step(names[place])
        except UserError:
            return None

    return in_threads(key, len(names), "looking for duplicates")
