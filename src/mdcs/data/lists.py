"""Benchmarks whose splits are list files, one picture a line: ImageNet-LT and Places-LT."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from mdcs.data.decode import Decoded
from mdcs.data.files import Files
from mdcs.data.paths import Paths
from mdcs.data.splits import DataSource, Listing, Source, Splits, long_tailed_splits
from mdcs.data.squares import evaluation_crop
from mdcs.data.store import Store, open_store
from mdcs.data.text import read_text
from mdcs.errors import UserError


class Layout(NamedTuple):
    """How a benchmark is distributed."""

    stem: str  # of the names of its list files, and the name of the folder that they come in
    above: int  # folders above those that name the classes
    renumbered: bool  # classes in descending order of their training pictures, whatever their numbers in the lists


LAYOUTS = {"imagenet_lt": Layout("ImageNet_LT", 1, False), "places_lt": Layout("Places_LT", 2, True)}


@dataclass(frozen=True)
class Lists(DataSource):
    """ImageNet-LT (arXiv:1904.05160) or Places-LT: the pictures of ImageNet or Places365 that three lists name, at their full size.

    `root` holds the pictures, as a folder, zip or tar. The lists are looked for under their published names in `root` and beside it:
    ImageNet_LT/ImageNet_LT_train.txt and so on. `train_list`, `val_list` and `test_list` name others, for example a test split of another
    class distribution; relative ones are looked for here, then in `root`. Without a validation list there is no validation split.

    Places-LT is renumbered: class 0 has the most training pictures; classes of equal size keep their order. The published code sorts
    unstably there, so its numbers of such classes differ between NumPy builds. Classes are named after their folders.
    """

    root: str
    dataset: Literal["imagenet_lt", "places_lt"]
    num_classes: int
    train_list: str | None = None
    val_list: str | None = None
    test_list: str | None = None
    classes: list[str] | None = None  # these only, labelled in this order
    image_size: int = 224
    many_above: int = 100
    few_below: int = 20

    # of ImageNet, for both
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)

    def splits(self) -> Splits:
        """Read the lists; that the pictures are there is seen when they are asked for, or by `mdcs check`."""
        if self.dataset not in LAYOUTS:
            raise UserError(f"data.dataset={self.dataset}: expected {' or '.join(LAYOUTS)}")
        layout, root = LAYOUTS[self.dataset], Path(self.root)
        store = open_store(root)
        read: dict[str, Listed] = {}
        notes: tuple[str, ...] = ()
        for split, given in (("train", self.train_list), ("val", self.val_list), ("test", self.test_list)):
            name = f"{layout.stem}_{split}.txt"
            file = find_list(root, f"{split}_list", given, [f"{layout.stem}/{name}"], required=split != "val")
            if file is None:
                notes = (f"there is no {name}, so no validation split: only the last epoch can be kept",)
            else:
                read[split] = read_list(file, self.num_classes)
        names = class_names(*read["train"], self.num_classes, layout.above)
        order = np.arange(self.num_classes)
        if layout.renumbered:
            order = np.argsort(-np.bincount(read["train"].labels, minlength=self.num_classes), kind="stable")
        new_label = np.argsort(order)
        listings = {split: listing(store, paths, new_label[labels], self) for split, (paths, labels) in read.items()}
        source = Source(tuple(names[label] for label in order), listings["train"], listings["test"], notes, listings.get("val"))
        if self.classes is not None:
            number = {name: order[label] for label, name in enumerate(source.names)}
            source = source.restricted(list(self.classes))
            order = np.array([number[name] for name in source.names])
        splits = long_tailed_splits(source, source.train_counts(), 0, 0.0, self.many_above, self.few_below)
        return splits._replace(label_map=tuple(order.tolist())) if layout.renumbered or self.classes else splits


class Listed(NamedTuple):
    """The pictures of a list."""

    paths: Paths  # (N) relative to the root
    labels: np.ndarray  # (N,) int64


def read_list(file: Path, num_classes: int) -> Listed:
    """Lines of `relative/path label`, split at the last blank, so that a path may hold others. Empty lines mean nothing.

    A line that is none, a label outside 0 .. `num_classes` − 1 and a picture that comes twice are refused with the number of the line.
    """
    paths: dict[str, int] = {}  # in order, each with its label
    label_of: dict[str, int] = {}  # by how it is written: each is checked once, for there may be a million lines
    for number, line in enumerate(read_text(file).split("\n"), 1):
        try:
            path, label = line.rsplit(maxsplit=1)
        except ValueError:  # fewer than two words
            path, label = line.strip(), ""
        if label not in label_of:
            if not path:
                continue
            if not (label.isascii() and label.isdecimal() and len(label) < 10 and int(label) < num_classes):
                raise _bad_line(f"{file}, line {number}", path, label, num_classes)
            label_of[label] = int(label)
        if path in paths:
            raise _bad_line(f"{file}, line {number}", path, label, num_classes)
        paths[path] = label_of[label]
    if not paths:
        raise UserError(f"{file} lists no pictures: expected one a line, relative/path label")
    return Listed(Paths(paths), np.fromiter(paths.values(), np.int64, len(paths)))


def _bad_line(where: str, path: str, label: str, num_classes: int) -> UserError:
    if not label.removeprefix("-").isdecimal():
        return UserError(
            f"{where}: {f'{path} {label}'.strip()!r} is no picture with its class, such as train/n01440764/n01440764_18.JPEG 0"
        )
    if label.startswith("-") or int(label) >= num_classes:
        return UserError(f"{where}: class {label} of {path}: expected 0 to {num_classes - 1} (data.num_classes={num_classes})")
    return UserError(f"{where}: {path} was listed before: remove one of the lines")


def find_list(root: Path, key: str, given: str | None, standard: Sequence[str], required: bool = True) -> Path | None:
    """The file that `data.<key>` names, here or in `root`; or the first there is of `standard`, in `root` or beside it."""
    if given is not None:
        found = [file for file in (Path(given).expanduser(), root / given) if file.is_file()]
        if not found:
            raise UserError(f"data.{key}={given}: there is no such file, neither here nor in {root}")
        return found[0]
    beside = root.absolute().parent
    files = [file for name in standard for folder in (root, beside) for file in (folder / name, folder / Path(name).name)]
    found = [file for file in files if file.is_file()]
    if not found and required:
        what = " nor ".join(standard)
        raise UserError(
            f"{root} holds no {what}, nor does {beside}: data/README.md says where to get it; data.{key}=FILE names another place"
        )
    return found[0] if found else None


def class_names(paths: Paths, labels: np.ndarray, num_classes: int, above: int) -> tuple[str, ...]:
    """The folder of each class, without the first `above` ones; numbers where that does not give each class a name of its own."""
    first = np.full(num_classes, -1)
    first[labels[::-1]] = np.arange(len(labels))[::-1]
    names = tuple("/".join(paths[row].split("/")[above:-1]) if row >= 0 else "" for row in first.tolist())
    return names if all(names) and len(set(names)) == num_classes else tuple(str(label) for label in range(num_classes))


def listing(store: Store, paths: Paths, labels: np.ndarray, source: DataSource) -> Listing:
    """Pictures of `store` that are decoded when they are asked for, as a split of `source`."""
    picture, crop = Decoded(store, paths), evaluation_crop(source)
    return Listing(labels, paths, lambda positions: Files(picture, positions, crop))
