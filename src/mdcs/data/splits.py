"""What every data source yields: three sets of pictures in memory, the classes, and what the user should be told."""

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mdcs.data.classes import carve_validation, long_tailed_subset
from mdcs.errors import UserError
from mdcs.types import Classes


class DataSource:
    """What `data._target_` may name: a dataclass whose fields are the configuration keys. Nothing is read before `splits`."""

    mean: ClassVar[tuple[float, float, float]]  # of the three channels, pixels in [0, 1]
    std: ClassVar[tuple[float, float, float]]

    def splits(self) -> "Splits":
        """Read the dataset."""
        raise NotImplementedError


class Pictures(NamedTuple):
    """One split in memory."""

    images: Tensor  # (N, 3, H, W) uint8
    labels: Tensor  # (N,) int64
    positions: Tensor  # (N,) int64, position in the source's order; train and val share one order, test may have its own
    paths: tuple[str, ...]  # (N) where each picture comes from: a file, a member of a zip, or archive file and row


class Splits(NamedTuple):
    """A dataset ready to train on. `classes` counts the pictures trained on, after validation was carved out of them."""

    train: Pictures
    val: Pictures | None
    test: Pictures
    classes: Classes
    counts_before_validation: tuple[int, ...]  # (C)
    notes: tuple[str, ...]  # sentences for the user


class Listing(NamedTuple):
    """The pictures of one split of a source, in the source's order, not yet read."""

    labels: np.ndarray  # (N,) int64, −1 = belongs to none of the classes
    paths: Sequence[str]  # (N)
    read: Callable[[np.ndarray], Tensor]  # positions (n,) -> (n, 3, H, W) uint8

    def pictures(self, positions: np.ndarray) -> Pictures:
        """Read the pictures at `positions` (n,), in that order."""
        paths = tuple(self.paths[position] for position in positions)
        return Pictures(self.read(positions), torch.from_numpy(self.labels[positions]), torch.from_numpy(positions), paths)


class Source(NamedTuple):
    """A dataset that is listed but not read."""

    names: tuple[str, ...]  # (C)
    train: Listing
    test: Listing
    notes: tuple[str, ...] = ()

    def restricted(self, classes: Sequence[str]) -> "Source":
        """The same source with these classes only, labelled in the given order. Positions do not change."""
        unknown = [name for name in classes if name not in self.names]
        if unknown:
            raise UserError(f"data.classes: no class '{unknown[0]}' among the {len(self.names)} of this dataset: {', '.join(self.names)}")
        if len(set(classes)) != len(classes) or not classes:
            raise UserError(f"data.classes=[{', '.join(classes)}]: expected one or more class names, each once")
        new_label = np.full(len(self.names), -1, dtype=np.int64)
        for label, name in enumerate(classes):
            new_label[self.names.index(name)] = label
        train, test = (of._replace(labels=np.where(of.labels < 0, -1, new_label[of.labels])) for of in (self.train, self.test))
        return self._replace(names=tuple(classes), train=train, test=test)

    def train_counts(self) -> list[int]:
        """Training pictures available for each class; an error names a class without training or test pictures."""
        train, test = (np.bincount(listing.labels[listing.labels >= 0], minlength=len(self.names)) for listing in (self.train, self.test))
        for counts, split in ((train, "training"), (test, "test")):
            if not counts.all():
                raise UserError(f"class '{self.names[int(counts.argmin())]}' has no {split} picture: add some, or leave the class out")
        return [int(count) for count in train]


def long_tailed_splits(
    source: Source, counts: Sequence[int], subset_seed: int, val_fraction: float, many_above: int, few_below: int
) -> Splits:
    """Draw `counts[c]` training pictures of each class, set validation pictures aside, and read only what was chosen.

    The test split is everything that `source.test` holds of its classes; `subset_seed` decides about training and validation only.
    """
    source.train_counts()  # refuses classes that the source has no pictures of
    subset = long_tailed_subset(source.train.labels, list(counts), subset_seed)
    kept, carved = carve_validation(source.train.labels[subset], val_fraction, subset_seed)
    train = source.train.pictures(subset[kept])
    val = source.train.pictures(subset[carved]) if len(carved) else None
    test = source.test.pictures(np.flatnonzero(source.test.labels >= 0))
    for part in (val, test):
        if part is not None and part.images.shape[1:] != train.images.shape[1:]:
            sizes = [f"{tuple(of.images.shape[2:])} for {of.paths[0]}" for of in (train, part)]
            raise UserError(f"pictures of different size (height, width): {sizes[0]} and {sizes[1]}; all must have one size")
    single = [name for name, count in zip(source.names, counts, strict=True) if count == 1]
    notes = source.notes
    if val is not None and single:
        notes += (f"{len(single)} classes have a single training picture, so none in the validation split: {', '.join(single)}",)
    classes = Classes.of(train.labels, source.names, many_above, few_below)
    return Splits(train, val, test, classes, tuple(counts), notes)
