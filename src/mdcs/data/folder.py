"""Own pictures in class folders: any sizes, in a folder, a zip or a tar, with or without split folders."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mdcs.data.crops import Crop
from mdcs.data.decode import Decoded, measured
from mdcs.data.files import Files
from mdcs.data.splits import DataSource, Listing, Source, Splits, Survey, having, listed, long_tailed_splits, several
from mdcs.data.store import Store, open_store
from mdcs.data.survey import duplicates, evenly, refusals, survey
from mdcs.data.tree import Part, class_tree
from mdcs.errors import UserError

SMALL = 64  # pixels; squares up to this side are kept in memory
LEFT_OUT = "cannot be read, so left out"  # the mark of a sentence on such pictures
MOST_COMPARED = 1000  # classes whose names are compared with one another
MOST_MEASURED = 50_000  # pictures whose header is read at the start; all of a million would take minutes


class Own(NamedTuple):
    """Somebody's pictures, listed."""

    store: Store
    names: tuple[str, ...]  # (C)
    parts: dict[str, Part]  # train, and val and test where there are
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Folder(DataSource):
    """<class>/<picture>, or train|val|test/<class>/<picture>, in a folder, a zip or a tar, or in the one folder at its top.

    Without a val folder, `val_fraction` of each class is set aside; without a test folder there is no test split. Squares of up to 64
    pixels are kept in memory: the short side becomes `image_size`, then the centre is taken. Larger ones are cut when they are asked for.

    Before training every picture is read where squares are kept in memory or `on_bad` is skip, else the headers of up to 50,000. What
    cannot be read is named: `on_bad` = stop refuses to train, skip leaves it out.
    """

    root: str | None = None
    image_size: int | Literal["auto"] = "auto"  # auto: from the median short side, 32, 64, 128 or 224
    val_fraction: float = 0.1
    subset_seed: int = 0
    classes: list[str] | None = None  # these only, labelled in this order
    on_bad: Literal["stop", "skip"] = "stop"
    shot_groups: Literal["thresholds", "quantiles"] = "thresholds"  # quantiles: about a third of the classes are many, a third few
    many_above: int = 100
    few_below: int = 20

    # of ImageNet, as pretrained networks expect
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.image_size != "auto" and self.image_size < 1:
            raise UserError(f"data.image_size={self.image_size}: expected auto or a number of pixels from 1")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError(f"data.mean={self.mean}, data.std={self.std}: expected three numbers each, those of std above 0")

    def listed(self) -> Own:
        """The pictures by name, without a look into them."""
        if self.root is None:
            raise UserError("data.root is missing: set it to a folder, zip or tar of <class>/<picture>")
        store = open_store(Path(self.root))
        tree = class_tree(store)
        return Own(store, tree.names, tree.parts, tree.notes)

    def survey(self) -> Survey:
        """From the headers of up to 1,000 training pictures."""
        own = self.listed()
        source = _source(own)
        if self.classes is not None:
            source = source.restricted(list(self.classes))
            source.train_counts()  # refuses a class without pictures
        listings = {"train": source.train, "val": source.val, "test": source.test}
        kept = {split: np.flatnonzero(listing.labels >= 0) for split, listing in listings.items() if listing is not None}
        num_classes = len(np.unique(source.train.labels[kept["train"]]))
        sizes = " + ".join(f"{len(of):,} {split}" for split, of in kept.items())
        divided = f"{sizes} pictures in {num_classes} class{'es' * (num_classes > 1)}"
        if "val" not in kept and self.val_fraction:
            divided += f"; data.val_fraction={self.val_fraction:g} of train becomes val, class by class"
        if "test" not in kept:
            divided += "; the run is scored on val, as there is no test"
        return survey(own.store, own.parts["train"].paths.take(kept["train"]), divided)

    def splits(self) -> Splits:
        """List, check and, where they are small, read all pictures."""
        own = self.listed()
        size = self.survey().image_size if self.image_size == "auto" else self.image_size
        source = _source(own)
        if self.classes is not None:
            source = source.restricted(list(self.classes))
        source = self._readable(source, own.store, size)
        if self.classes is None:
            source = _with_training_pictures(source)
        counts = source.train_counts()
        rare = [name for name, count in zip(source.names, counts, strict=True) if count <= 2]
        if question := misspelt(rare, source.names):
            source = source._replace(notes=(*source.notes, f"{having(rare)} one or two training pictures{question}"))
        splits = long_tailed_splits(source, counts, self.subset_seed, self.val_fraction, self.many_above, self.few_below)
        notes = list(splits.notes)
        classes = splits.classes
        if self.shot_groups == "quantiles":
            many_above, few_below = quantile_thresholds(classes.counts.tolist())
            classes = replace(classes, many_above=many_above, few_below=few_below)
            sizes = ", ".join(f"{name} {int(group.sum())}" for name, group in classes.groups.items())
            notes.append(f"shot groups by quantiles: many above {many_above} pictures, few below {few_below} (classes: {sizes})")
        notes += duplicates(own.store, {name: pictures.paths for name, pictures in splits.named().items()})
        return splits._replace(classes=classes, notes=tuple(notes))

    def _readable(self, source: Source, store: Store, size: int) -> Source:
        """`source` with a way to read its pictures, those that cannot be read belonging to no class."""
        listings: dict[str, Listing] = {}
        bad: dict[str, str] = {}
        total = 0
        for split, listing in (("train", source.train), ("val", source.val), ("test", source.test)):
            if listing is not None:
                listings[split], refused = _checked(listing, store, size, self.on_bad)
                bad |= {listing.paths[position]: reason for position, reason in refused.items()}
                total += int((listing.labels >= 0).sum())
        if bad and self.on_bad == "stop":
            raise UserError(
                f"{len(bad)} of {total:,} pictures cannot be used: {listed(list(bad.values()), 3)}; "
                "replace or remove them (mdcs check names more), or leave them out with data.on_bad=skip"
            )
        notes = source.notes
        if bad:
            why = [f"{name} ({said.rpartition(' cannot be read')[2].partition('(')[2]}" for name, said in bad.items()]
            notes += (f"{len(bad):,} of {several(total, 'picture')} {LEFT_OUT}: {listed(why, 100)}",)
        return source._replace(train=listings["train"], val=listings.get("val"), test=listings.get("test"), notes=notes)


def quantile_thresholds(counts: Sequence[int]) -> tuple[int, int]:
    """(many_above, few_below) such that the shares of many- and few-shot classes are as near to a third as ties allow.

    Classes with equal counts stay together; where all are equal, all are medium.
    """
    third = len(counts) / 3
    values = sorted(set(counts))
    least_of_many = min([values[-1] + 1, *values], key=lambda value: abs(sum(count >= value for count in counts) - third))
    most_of_few = min([values[0] - 1, *values], key=lambda value: abs(sum(count <= value for count in counts) - third))
    return least_of_many - 1, most_of_few + 1


def _source(own: Own) -> Source:
    def unread(positions: np.ndarray) -> Tensor:
        raise AssertionError("pictures are checked before they are read")

    listings = {split: Listing(part.labels, part.paths, unread, part.meta) for split, part in own.parts.items()}
    return Source(own.names, listings["train"], listings.get("test"), own.notes, listings.get("val"))


def _checked(listing: Listing, store: Store, size: int, on_bad: str) -> tuple[Listing, dict[int, str]]:
    """The listing with its `read`, and why pictures cannot be read, by position."""
    picture = Decoded(store, listing.paths)
    chosen = np.flatnonzero(listing.labels >= 0)
    if size > SMALL:
        if on_bad == "skip":
            bad = refusals(picture, chosen, "decoding every picture once")
        else:
            some = chosen[evenly(len(chosen), MOST_MEASURED)]
            bad = refusals(lambda position: measured(store, listing.paths[position]), some, "reading headers")

        def read(positions: np.ndarray) -> Tensor | Files:
            return Files(picture, positions, Crop(size))
    else:
        row_of = np.full(len(listing.labels), -1, dtype=np.int64)
        row_of[chosen] = np.arange(len(chosen))
        squares_N3HW = np.empty((len(chosen), 3, size, size), dtype=np.uint8)
        crop = Crop(size, resize=size)

        def keep(position: int) -> None:
            squares_N3HW[row_of[position]] = crop.plain(picture(position))

        bad = refusals(keep, chosen, "reading pictures")

        def read(positions: np.ndarray) -> Tensor | Files:
            return torch.from_numpy(squares_N3HW[row_of[positions]])

    labels = listing.labels.copy()
    labels[list(bad)] = -1
    return listing._replace(labels=labels, read=read), bad


def _with_training_pictures(source: Source) -> Source:
    """The classes that can be learned, and a note on the others."""
    counts = np.bincount(source.train.labels[source.train.labels >= 0], minlength=len(source.names))
    absent = [name for name, count in zip(source.names, counts, strict=True) if not count]
    if not absent or not counts.any():
        return source
    note = f"{having(absent)} no training picture; what is in {'them' if len(absent) > 1 else 'it'} elsewhere was left out"
    note += misspelt(absent, source.names)
    learned = [name for name, count in zip(source.names, counts, strict=True) if count]
    return source.restricted(learned)._replace(notes=(*source.notes, note))


def misspelt(suspects: Sequence[str], names: Sequence[str]) -> str:
    """The end of a sentence about `suspects`, if one of them looks like another of `names`. Numbered names do not count as alike."""
    for name in suspects if len(names) <= MOST_COMPARED else ():
        others = [other for other in names if re.sub(r"\d", "", other) != re.sub(r"\d", "", name)]
        if close := difflib.get_close_matches(name, others, 1, 0.8):
            return f"; is '{name}' a misspelt '{close[0]}'?"
    return ""
