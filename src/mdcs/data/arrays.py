"""Datasets that fit in one uint8 tensor. The constructor arguments of a source are its configuration keys; `splits` reads it."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from mdcs.data.archives import LAYOUTS, layout_of, read_archive, read_folder
from mdcs.data.classes import Profile, long_tailed_counts
from mdcs.data.decode import decode
from mdcs.data.splits import DataSource, Listing, Source, Splits, having, long_tailed_splits
from mdcs.data.store import Store, open_store
from mdcs.data.tree import Part, class_tree
from mdcs.errors import UserError


@dataclass(frozen=True)
class Digits(DataSource):
    """digits-LT: scikit-learn's 1,797 real 8x8 digits, grey copied to three channels; 600 for the test, 305 for training at IF 50.

    `RandomState(0)` shuffles each class, in ascending order, and its first 60 pictures are the test split, always. Of the rest, in the
    source's order, `RandomState(subset_seed)` draws n_c = max(1, int(110 · IF^(−c/9))). No download: the pictures come with scikit-learn.
    """

    imbalance_factor: float = 50
    profile: Profile = "exp"
    subset_seed: int = 0
    val_fraction: float = 0.0
    many_above: int = 40
    few_below: int = 7

    # of the 305 default training pictures, in [0, 1]; the same for every subset, so that runs on other subsets see equal inputs
    mean: Sequence[float] = (0.3075, 0.3075, 0.3075)
    std: Sequence[float] = (0.3770, 0.3770, 0.3770)
    image_size: int = field(init=False, default=8)

    def splits(self) -> Splits:
        """Read the digits, in a moment."""
        digits = _digits()
        grey_NHW = np.round(digits[:, :64].reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
        labels = digits[:, 64].astype(np.int64)
        is_test = np.zeros(len(labels), dtype=bool)
        random = np.random.RandomState(0)
        for label in range(10):
            positions = np.flatnonzero(labels == label)
            random.shuffle(positions)
            is_test[positions[:60]] = True

        def read(positions: np.ndarray) -> Tensor:
            return torch.from_numpy(grey_NHW[positions])[:, None].repeat(1, 3, 1, 1)

        paths = [f"digits/{position:04}" for position in range(len(labels))]
        train, test = (Listing(np.where(chosen, labels, -1), paths, read) for chosen in (~is_test, is_test))
        source = Source(tuple(str(label) for label in range(10)), train, test)
        counts = [max(1, count) for count in long_tailed_counts(110, 10, self.imbalance_factor, self.profile)]
        return long_tailed_splits(source, counts, self.subset_seed, self.val_fraction, self.many_above, self.few_below)


def _digits() -> np.ndarray:
    """(1797, 65): 64 grey values from 0 to 16 and the class. From scikit-learn's file, for its import takes longer than an epoch."""
    package = find_spec("sklearn")
    for place in (package and package.submodule_search_locations) or ():
        if (file := Path(place) / "datasets" / "data" / "digits.csv.gz").is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # a version that keeps it elsewhere

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])


@dataclass(frozen=True)
class Cifar(DataSource):
    """CIFAR-10-LT and CIFAR-100-LT, or any pictures of one size in class folders, made long-tailed; the whole test split.

    `root` is an official archive or its unpacked folder, or a directory holding one of them, or a folder or zip of train/<class>/* and
    test/<class>/*. Only official files give the published subset: the draw depends on their order. `classes` keeps these classes, labelled
    as listed. n_c follows from N/C, N training pictures in C classes; where a class of a folder has fewer, it gives all it has, and a note
    says so. Pictures whose numbers by class are already those of a long tail of this factor are all taken.
    """

    root: str
    num_classes: Literal[10, 100]
    imbalance_factor: float | None = 100  # None = every training picture
    profile: Profile = "exp"
    subset_seed: int = 0
    val_fraction: float = 0.0
    classes: list[str] | None = None
    download: bool = False
    many_above: int = 100
    few_below: int = 20

    # what the published code uses for both datasets
    mean: Sequence[float] = (0.4914, 0.4822, 0.4465)
    std: Sequence[float] = (0.2023, 0.1994, 0.2010)
    image_size: int | None = None  # None = as stored
    as_stored: ClassVar[bool] = True

    def splits(self) -> Splits:
        """Read the dataset, decoding the chosen pictures only; an error says what was looked for and where."""
        if self.num_classes not in LAYOUTS:
            raise UserError(f"data.num_classes={self.num_classes}: expected 10 or 100")
        source, official = self._source()
        if self.classes is not None:
            source = source.restricted(list(self.classes))
        elif len(source.names) != self.num_classes:
            raise UserError(
                f"{self.root} has {len(source.names)} classes, but data.num_classes={self.num_classes}: choose data=cifar10 or "
                "data=cifar100, or list the wanted ones in data.classes"
            )
        available = source.train_counts()
        wanted = available
        if self.imbalance_factor is not None:
            wanted = long_tailed_counts(sum(available) / len(available), len(available), self.imbalance_factor, self.profile)
            if available == long_tailed_counts(available[0], len(available), self.imbalance_factor, self.profile):
                wanted = available  # somebody has made it long-tailed before
        counts = [min(pair) for pair in zip(wanted, available, strict=True)]
        short = [name for name, count, want in zip(source.names, counts, wanted, strict=True) if count < want]
        if short:
            note = f"{having(short)} fewer training pictures than data.profile asks for, and so all are taken"
            source = source._replace(notes=(*source.notes, note))
        if not official and sum(counts) < sum(available):
            note = (
                f"{self.root}: pictures in class folders, drawn in the order of their names, so the training subset is not the official one"
            )
            source = source._replace(notes=(*source.notes, note))
        if min(available) < max(available) and sum(counts) < sum(available):
            note = f"{sum(counts)} of {sum(available)} training pictures are drawn; data.imbalance_factor=null takes all as they are"
            source = source._replace(notes=(*source.notes, note))
        splits = long_tailed_splits(source, counts, self.subset_seed, self.val_fraction, self.many_above, self.few_below)
        if self.image_size not in (None, stored := splits.train.images.shape[-1]):
            raise UserError(
                f"data.image_size={self.image_size}: the pictures of {self.root} have {stored} pixels, and are taken as they are"
            )
        return splits

    def _source(self) -> tuple[Source, bool]:
        """What there is, and whether it is in official files."""
        root = Path(self.root)
        official = LAYOUTS[self.num_classes]
        for folder in (root, root / official.folder):
            if (layout := layout_of(folder)) is not None:
                return read_folder(folder, layout), True
        for archive in (root, root / official.archive):
            if archive.is_file() and archive.suffix.lower() != ".zip":
                return read_archive(archive), True
        # a folder among others in a data directory is not taken for what was to be fetched
        if not (root.is_file() or any(root.glob("train/")) or (any(root.glob("*/train/")) and not self.download)):
            if self.download:
                _download(root, self.num_classes)
                return read_archive(root / official.archive), True
            raise UserError(
                f"CIFAR-{self.num_classes} is not in {root}: looked for {official.archive}, {official.folder}/ and train/<class>/*; "
                "set data.download=true to fetch it there, or data.root=... to where it is"
            )
        store = open_store(root)
        tree = class_tree(store)
        if not {"train", "test"} <= tree.parts.keys():
            raise UserError(f"{root}: expected train/<class>/<picture> and test/<class>/<picture>, here or inside one folder")
        train, test = (_listing(tree.parts[split], store) for split in ("train", "test"))
        return Source(tree.names, train, test, tree.notes), False


def _listing(part: Part, store: Store) -> Listing:
    """Pictures of one size, decoded when they are chosen."""

    def read(positions: np.ndarray) -> Tensor:
        names = part.paths.take(positions)
        images_NHW3 = np.empty((0, 0, 0, 3), dtype=np.uint8)
        for row, name in enumerate(names):
            pixels_HW3 = decode(store.read(name), name)
            if row == 0:
                if pixels_HW3.shape[0] != pixels_HW3.shape[1]:
                    size = f"{pixels_HW3.shape[1]}x{pixels_HW3.shape[0]}"
                    raise UserError(f"{store.root}: {name} has {size} pixels; pictures must be square here, data=folder takes any")
                images_NHW3 = np.empty((len(names), *pixels_HW3.shape), dtype=np.uint8)
            if pixels_HW3.shape != images_NHW3.shape[1:]:
                (height, width), (first_height, first_width) = pixels_HW3.shape[:2], images_NHW3.shape[1:3]
                raise UserError(
                    f"{store.root}: {name} has {width}x{height} pixels, {names[0]} has {first_width}x{first_height}; all must have one "
                    "size here, data=folder takes any"
                )
            images_NHW3[row] = pixels_HW3
        return torch.from_numpy(images_NHW3.transpose(0, 3, 1, 2).copy())

    return Listing(part.labels, tuple(part.paths), read)


def _download(root: Path, num_classes: int) -> None:
    """Fetch the official archive into `root`, checked against its published MD5; a download that fails leaves no archive behind."""
    from torchvision.datasets import CIFAR10, CIFAR100
    from torchvision.datasets.utils import download_url

    dataset = CIFAR10 if num_classes == 10 else CIFAR100
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as beside:
            download_url(dataset.url, beside, dataset.filename, dataset.tgz_md5)
            os.replace(Path(beside) / dataset.filename, root / dataset.filename)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{dataset.url} cannot be fetched into {root} ({error}): fetch it by hand and set data.root=... to where it is"
        ) from error
