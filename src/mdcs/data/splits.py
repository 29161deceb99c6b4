"""What every data source yields: up to three sets of pictures, the classes, and what the user should be told."""

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mdcs.data.classes import carve_validation, long_tailed_subset
from mdcs.data.files import Files
from mdcs.data.paths import Paths
from mdcs.errors import UserError
from mdcs.types import Classes


class Survey(NamedTuple):
    """What a dataset's pictures are like, found out quickly, so that a recipe can be chosen."""

    image_size: int  # the side that suits them
    num_pictures: int
    lines: tuple[str, ...]  # sentences for the user


class DataSource:
    """What `data._target_` may name: a dataclass whose fields are the configuration keys. Nothing is read before `splits`."""

    mean: Sequence[float]  # of the three channels, pixels in [0, 1]
    std: Sequence[float]
    image_size: int | str | None  # side of the squares that the network sees; "auto" = chosen from the pictures, None = as stored
    as_stored: ClassVar[bool] = False  # the network sees its pictures whole, whatever their size

    def splits(self) -> "Splits":
        """Read the dataset."""
        raise NotImplementedError

    def survey(self) -> Survey:
        """For sources with `image_size` = "auto": a look at the pictures without reading them all."""
        raise NotImplementedError


class Pictures(NamedTuple):
    """One split."""

    images: Tensor | Files  # (N, 3, H, W) uint8 in memory, or what decodes them when they are asked for
    labels: Tensor  # (N,) int64
    positions: Tensor  # (N,) int64, position in the source's order; splits may share one order or have their own
    paths: Sequence[str]  # (N) where each picture comes from: a file, a member of a zip, or archive file and row
    meta: Tensor | None = None  # (N, M) float32, NaN = not known

    def plain(self, index_B: Tensor) -> Tensor:
        """(B, 3, H, W) uint8: the pictures at `index` as evaluation sees them."""
        return self.images.index_select(0, index_B) if isinstance(self.images, Tensor) else self.images.plain(index_B)


class Splits(NamedTuple):
    """A dataset ready to train on. `classes` counts the pictures trained on, after validation was carved out of them."""

    train: Pictures
    val: Pictures | None
    test: Pictures | None  # None: the dataset has none, so the run is scored on validation
    classes: Classes
    counts_before_validation: tuple[int, ...]  # (C)
    notes: tuple[str, ...]  # sentences for the user
    label_map: tuple[int, ...] | None = None  # (C) the dataset's own number of each class, where labels were renumbered

    def named(self) -> dict[str, Pictures]:
        """The splits that there are, by name."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {name: pictures for name, pictures in splits.items() if pictures is not None}

    @property
    def scored(self) -> str:
        """Which split the run is judged by: test, or val where there is none."""
        return "test" if self.test is not None else "val"


class Listing(NamedTuple):
    """The pictures of one split of a source, in the source's order, not yet read."""

    labels: np.ndarray  # (N,) int64, −1 = belongs to none of the classes
    paths: Sequence[str]  # (N)
    read: Callable[[np.ndarray], Tensor | Files]  # positions (n,) -> (n, 3, H, W) uint8, or what decodes them when they are asked for
    meta: np.ndarray | None = None  # (N, M) float32

    def pictures(self, positions: np.ndarray) -> Pictures:
        """The pictures at `positions` (n,), in that order."""
        if isinstance(self.paths, Paths):
            paths: Sequence[str] = self.paths.take(positions)
        else:
            paths = tuple(self.paths[position] for position in positions)
        meta = None if self.meta is None else torch.from_numpy(self.meta[positions])
        return Pictures(self.read(positions), torch.from_numpy(self.labels[positions]), torch.from_numpy(positions), paths, meta)


class Source(NamedTuple):
    """A dataset that is listed but not read. It may lack a test split, and may bring its own validation split."""

    names: tuple[str, ...]  # (C)
    train: Listing
    test: Listing | None
    notes: tuple[str, ...] = ()
    val: Listing | None = None

    def restricted(self, classes: Sequence[str]) -> "Source":
        """The same source with these classes only, labelled in the given order. Positions do not change."""
        number = {name: label for label, name in enumerate(self.names)}
        unknown = [name for name in classes if name not in number]
        if unknown:
            raise UserError(f"data.classes: no class '{unknown[0]}' among the {len(self.names)} of this dataset: {', '.join(self.names)}")
        if len(set(classes)) != len(classes) or not classes:
            raise UserError(f"data.classes=[{', '.join(classes)}]: expected one or more class names, each once")
        new_label = np.full(len(self.names), -1, dtype=np.int64)
        for label, name in enumerate(classes):
            new_label[number[name]] = label

        def relabelled(listing: Listing | None) -> Listing | None:
            return listing and listing._replace(labels=np.where(listing.labels < 0, -1, new_label[listing.labels]))

        train, val, test = (relabelled(listing) for listing in (self.train, self.val, self.test))
        assert train is not None
        return self._replace(names=tuple(classes), train=train, val=val, test=test)

    def train_counts(self) -> list[int]:
        """Training pictures available for each class; an error names a class that has none."""
        counts = np.bincount(self.train.labels[self.train.labels >= 0], minlength=len(self.names))
        if not counts.all():
            name = self.names[int(counts.argmin())]
            raise UserError(f"class '{name}' has no training picture: add some, or leave the class out (data.classes=[...])")
        return [int(count) for count in counts]


def long_tailed_splits(
    source: Source, counts: Sequence[int], subset_seed: int, val_fraction: float, many_above: int, few_below: int
) -> Splits:
    """Draw `counts[c]` training pictures of each class, set validation pictures aside where the source has none, read what was chosen.

    The test split is everything that `source.test` holds of its classes; `subset_seed` decides about training and validation only.
    """
    source.train_counts()  # refuses classes that the source has no pictures of
    subset = long_tailed_subset(source.train.labels, list(counts), subset_seed)
    kept, carved = carve_validation(source.train.labels[subset], 0.0 if source.val is not None else val_fraction, subset_seed)
    train = source.train.pictures(subset[kept])
    if source.val is not None:
        val: Pictures | None = source.val.pictures(np.flatnonzero(source.val.labels >= 0))
    else:
        val = source.train.pictures(subset[carved]) if len(carved) else None
    test = None if source.test is None else source.test.pictures(np.flatnonzero(source.test.labels >= 0))
    for part in (val, test):
        if part is not None and part.images.shape[1:] != train.images.shape[1:]:
            sizes = [f"{tuple(of.images.shape[2:])} for {of.paths[0]}" for of in (train, part)]
            raise UserError(f"pictures of different size (height, width): {sizes[0]} and {sizes[1]}; all must have one size")
    if val is None and test is None:
        remedy = "every class has a single picture, so none can be set aside for validation: add pictures" if val_fraction else ""
        raise UserError(
            f"there is neither a test nor a validation split, so nothing to judge the run by: {remedy or 'set data.val_fraction=0.1'}"
        )
    notes = source.notes
    if carved_from := [name for name, count in zip(source.names, counts, strict=True) if count == 1] if len(carved) else []:
        notes += (f"{having(carved_from)} a single training picture, so none in the validation split",)
    for split, listing in (("validation", source.val), ("test", source.test)):
        if listing is not None and (absent := np.setdiff1d(np.arange(len(source.names)), listing.labels)).size:
            names = [source.names[label] for label in absent]
            notes += (f"{having(names)} no {split} picture, so its averages go without",)
    classes = Classes.of(train.labels, source.names, many_above, few_below)
    return Splits(train, val, test, classes, tuple(counts), notes)


def having(names: Sequence[str]) -> str:
    """1 class (fly) has; 2 classes (ant, bee) have."""
    return f"{len(names)} {'classes' if len(names) > 1 else 'class'} ({listed(names)}) {'have' if len(names) > 1 else 'has'}"


def several(count: int, noun: str) -> str:
    """1 picture; 2 pictures."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def listed(names: Sequence[str], most: int = 10) -> str:
    """The first few names, for a sentence."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
