"""iNaturalist 2017, 2018 and 2021, from their JSON files or, for 2018, from list files."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mdcs.data.lists import Listed, class_names, find_list, listing, read_list
from mdcs.data.paths import Paths
from mdcs.data.splits import DataSource, Source, Splits, long_tailed_splits
from mdcs.data.store import open_store
from mdcs.errors import UserError

# Names of the files by year, for training, the smaller training set, and the official validation set, which is the test split.
FILES = {
    2017: ("train2017.json", None, "val2017.json"),
    2018: ("train2018.json", None, "val2018.json"),
    2021: ("train.json", "train_mini.json", "val.json"),
}
LISTS_2018 = "iNaturalist18/iNaturalist18_{}.txt"


@dataclass(frozen=True)
class INaturalist(DataSource):
    """iNaturalist as it was released for the competition of `year`; long-tailed by nature, tested on its official validation set.

    `root` holds the pictures, as a folder, zip or tar, and the JSON files lie in it or beside it; for 2018 also list files of `path label`
    will do. `train_list` and `test_list` name others of either kind. `mini` takes the 50 pictures a class of 2021's smaller training set.

    Class c is the c-th category in ascending order of its number. Its name comes from the JSON files; those of 2018 have numbers only,
    unless the later released categories.json lies there too. Validation pictures can be set aside with `val_fraction`.
    """

    root: str
    year: Literal[2017, 2018, 2021]
    num_classes: int
    train_list: str | None = None
    test_list: str | None = None
    mini: bool = False
    classes: list[str] | None = None  # these only, labelled in this order
    val_fraction: float = 0.0
    subset_seed: int = 0
    image_size: int = 224
    many_above: int = 100
    few_below: int = 20

    # what the published code uses
    mean: Sequence[float] = (0.466, 0.471, 0.380)
    std: Sequence[float] = (0.195, 0.194, 0.192)

    def splits(self) -> Splits:
        """Read the files; that the pictures are there is seen when they are asked for, or by `mdcs check`."""
        if self.year not in FILES:
            raise UserError(f"data.year={self.year}: expected {', '.join(map(str, FILES))}")
        full, mini, official = FILES[self.year]
        if self.mini and mini is None:
            raise UserError(f"data.mini=true: there is no smaller training set of {self.year}, only of 2021")
        root = Path(self.root)
        store = open_store(root)
        train_file = self._file("train_list", self.train_list, str(mini if self.mini else full), "train")
        test_file = self._file("test_list", self.test_list, official, "val")
        train, names = read_file(train_file, self.num_classes)
        test, other_names = read_file(test_file, self.num_classes)
        if names is not None and other_names is not None and names != other_names:
            raise UserError(f"{train_file} and {test_file} have other categories: expected two files of one release")
        if self.year == 2018:
            later = find_list(root, "", None, ["categories.json"], required=False)
            names = names_by_number(later, self.num_classes) if later is not None else names or other_names
        names = names or other_names or class_names(*train, self.num_classes, above=2)
        source = Source(distinct(names), listing(store, *train, self), listing(store, *test, self))
        label_map = None
        if self.classes is not None:
            number = {name: label for label, name in enumerate(source.names)}
            source = source.restricted(list(self.classes))
            label_map = tuple(number[name] for name in source.names)
        counts = source.train_counts()
        splits = long_tailed_splits(source, counts, self.subset_seed, self.val_fraction, self.many_above, self.few_below)
        return splits._replace(label_map=label_map)

    def _file(self, key: str, given: str | None, name: str, split: str) -> Path:
        standard = [name, LISTS_2018.format(split)] if self.year == 2018 else [name]
        file = find_list(Path(self.root), key, given, standard)
        assert file is not None
        return file


def read_file(file: Path, num_classes: int) -> tuple[Listed, tuple[str, ...] | None]:
    """The pictures of a JSON file and the names of its classes, or of a list file, which has no names."""
    if file.suffix.lower() != ".json":
        return read_list(file, num_classes), None
    content = _parsed(file)
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in ("images", "annotations", "categories")):
        raise UserError(f"{file}: expected an object with images, annotations and categories, as iNaturalist's files for training have")
    try:
        numbers = np.array(sorted(category["id"] for category in content["categories"]), dtype=np.int64)
        names = tuple(str(category["name"]).strip() for category in sorted(content["categories"], key=lambda category: category["id"]))
        labels = _labels(file, content["images"], content["annotations"], numbers)
        paths = Paths(image.path for image in content["images"])
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{file} is not as iNaturalist's files are: expected id and name of categories, id and file_name of images, image_id and "
            f"category_id of annotations ({type(error).__name__}: {error})"
        ) from error
    if len(numbers) != num_classes:
        raise UserError(f"{file} has {len(numbers)} categories, but data.num_classes={num_classes}: is it of another year?")
    return Listed(paths, labels), names


class _Image(NamedTuple):
    number: int
    path: str


class _Annotation(NamedTuple):
    image: int
    category: int


def _parsed(file: Path) -> Any:
    """The JSON content, with images and annotations cut down to what is needed while it is read: those of 2021 fill a gigabyte."""

    def smaller(node: dict[str, Any]) -> Any:
        if "file_name" in node:
            return _Image(node["id"], node["file_name"])
        return _Annotation(node["image_id"], node["category_id"]) if "image_id" in node else node

    try:
        with file.open(encoding="utf-8") as stream:
            return json.load(stream, object_hook=smaller)
    except KeyError as missing:
        raise UserError(f"{file}: an image or annotation without {missing}") from missing
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no JSON, or no UTF-8
        raise UserError(f"{file} cannot be read as JSON ({error})") from error


def _labels(file: Path, images: Sequence[_Image], annotations: Sequence[_Annotation], numbers: np.ndarray) -> np.ndarray:
    """(N,) int64, the class of each image. Annotations are found by the number of their image, not by their place in the file."""
    if not images:
        raise UserError(f"{file} lists no pictures")
    ids = np.array([image.number for image in images], dtype=np.int64)
    order = np.argsort(ids)
    ascending = ids[order]
    if (again := ascending[1:][ascending[1:] == ascending[:-1]]).size:
        raise UserError(f"{file}: several images have the id {again[0]}")
    of_image = _found(file, "an annotation is of image", [annotation.image for annotation in annotations], ascending)
    rows, label = (
        order[of_image],
        _found(file, "an annotation names category", [annotation.category for annotation in annotations], numbers),
    )
    labels = np.full(len(ids), -1)
    labels[rows] = label
    if (lost := np.flatnonzero(labels < 0)).size:
        raise UserError(f"{file}: image {images[lost[0]].path} has no annotation, expected one")
    if (torn := rows[labels[rows] != label]).size:
        raise UserError(f"{file}: image {images[torn[0]].path} has annotations of several categories, expected one")
    return labels


def _found(file: Path, what: str, wanted: Sequence[int], ascending: np.ndarray) -> np.ndarray:
    """Places of `wanted` in `ascending`; refuses one that is not there."""
    numbers = np.array(wanted, dtype=np.int64)
    places = np.searchsorted(ascending, numbers).clip(max=len(ascending) - 1)
    if (lost := np.flatnonzero(ascending[places] != numbers)).size:
        raise UserError(f"{file}: {what} {numbers[lost[0]]}, which is not in the file")
    return places


def names_by_number(file: Path, num_classes: int) -> tuple[str, ...]:
    """Names from categories.json, a list of {id, name}, in ascending order of the numbers."""
    content = _parsed(file)
    try:
        names = tuple(str(category["name"]).strip() for category in sorted(content, key=lambda category: category["id"]))
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: expected a list of categories with id and name") from error
    if len(names) != num_classes:
        raise UserError(f"{file} has {len(names)} categories, but data.num_classes={num_classes}: is it of another year?")
    return names


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with the class number behind those that several classes have."""
    number = Counter(names)
    return tuple(name if number[name] == 1 else f"{name} ({label})" for label, name in enumerate(names))
