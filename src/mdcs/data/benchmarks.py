"""How large the benchmarks are, for `mdcs check`. Numbers that no source we could read confirms are left out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mdcs.data.inaturalist import FILES, LISTS_2018
from mdcs.data.lists import LAYOUTS

# By (number of classes, imbalance factor): training pictures, and classes with more than 100, 20 to 100 and fewer than 20 of them, counted
# on the subsets of the published code (exponential profile).
CIFAR = {
    (10, 10): (20_431, (10, 0, 0)),
    (10, 50): (13_996, (9, 1, 0)),
    (10, 100): (12_406, (8, 2, 0)),
    (10, 200): (11_203, (7, 3, 0)),
    (100, 10): (19_573, (69, 31, 0)),
    (100, 50): (12_608, (41, 41, 18)),
    (100, 100): (10_847, (35, 35, 30)),
    (100, 200): (9_502, (30, 31, 39)),
}


class Facts(NamedTuple):
    """What is known of a dataset; None or a split left out = not known."""

    classes: int
    pictures: dict[str, int]  # of the splits; "train" before validation pictures are set aside
    largest: int | None = None  # training pictures of a class
    smallest: int | None = None
    groups: tuple[int, int, int] | None = None  # classes with more than 100 training pictures, 20 to 100, fewer than 20


IMAGENET_LT = Facts(1000, {"train": 115_846, "val": 20_000, "test": 50_000}, 1280, 5, (385, 479, 136))  # groups: SADE's shot lists
PLACES_LT = Facts(365, {"train": 62_500, "val": 7_300, "test": 36_500}, 4980, 5, (131, 163, 71))
INATURALIST = {  # the competitions' own pages, github.com/visipedia/inat_comp
    2017: Facts(5089, {"train": 579_184, "test": 95_986}),
    2018: Facts(8142, {"train": 437_513, "test": 24_426}),
    2021: Facts(10_000, {"train": 2_686_843, "test": 100_000}),
}
INATURALIST_MINI = Facts(10_000, {"train": 500_000, "test": 100_000}, 50, 50, (0, 10_000, 0))
DIGITS = Facts(10, {"train": 305, "test": 600}, 110, 2)


def published(data: Mapping[str, Any]) -> Facts | None:
    """What the settings `data` of a dataset should give; None for own pictures and for settings that nobody published.

    A list of another name than the published one is taken for a split of the user's own.
    """
    source = data["_target_"].rpartition(".")[2]
    if data.get("classes") is not None:
        return None
    if source == "Lists":
        facts, stem = {"imagenet_lt": IMAGENET_LT, "places_lt": PLACES_LT}[data["dataset"]], LAYOUTS[data["dataset"]].stem
        return _of_published_lists(facts, data, {split: [f"{stem}_{split}.txt"] for split in ("train", "val", "test")})
    if source == "INaturalist":
        full, mini, official = FILES[data["year"]]
        facts = INATURALIST_MINI if data.get("mini") else INATURALIST[data["year"]]
        lists = {"train": [str(mini if data.get("mini") else full)], "test": [official]}
        if data["year"] == 2018:
            lists = {split: [*lists[split], Path(LISTS_2018.format(part)).name] for split, part in (("train", "train"), ("test", "val"))}
        return _of_published_lists(facts, data, lists)
    if data.get("profile") != "exp":
        return None
    if source == "Digits":
        return DIGITS if data["imbalance_factor"] == 50 else None
    if source == "Cifar":
        num_classes, factor = data["num_classes"], data["imbalance_factor"]
        each = 50_000 // num_classes
        if factor is None:
            return Facts(num_classes, {"train": 50_000, "test": 10_000}, each, each)
        if (num_classes, factor) in CIFAR:
            total, groups = CIFAR[num_classes, factor]
            return Facts(num_classes, {"train": total, "test": 10_000}, each, int(each / factor), groups)
    return None


def _of_published_lists(facts: Facts, data: Mapping[str, Any], names: Mapping[str, list[str]]) -> Facts | None:
    if data["num_classes"] != facts.classes:
        return None
    own = [split for split, files in names.items() if data.get(f"{split}_list") and Path(data[f"{split}_list"]).name not in files]
    pictures = {split: count for split, count in facts.pictures.items() if split not in own}
    return Facts(facts.classes, pictures) if "train" in own else facts._replace(pictures=pictures)
