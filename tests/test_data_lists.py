"""ImageNet-LT and Places-LT from list files: the published lists where they are there, what is refused and where, renumbering."""

import gc
import zipfile
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT, golden
from mdcs.data.files import Files
from mdcs.data.lists import Lists, class_names, find_list, read_list
from mdcs.data.module import PictureBatches
from mdcs.data.paths import Paths
from mdcs.errors import UserError

PUBLISHED = ROOT.parent / "shared" / "data" / "lists.zip"
TRAIN, VAL, TEST = (f"Places_LT/Places_LT_{split}.txt" for split in ("train", "val", "test"))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published lists, unpacked."""
    if not PUBLISHED.exists():
        pytest.skip(f"no {PUBLISHED}")
    folder = tmp_path_factory.mktemp("lists")
    with zipfile.ZipFile(PUBLISHED) as archive:
        archive.extractall(folder)
    return folder


def write(root: Path, lists: dict[str, list[str]]) -> Path:
    """List files below `root`, and the pictures that they name, each of one colour that its number in order decides."""
    number = 0
    for name, lines in lists.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        for line in lines:
            place = root / line.rsplit(maxsplit=1)[0]
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (50, 40), (number, 2 * number, 255 - number)).save(place, format="PNG")
            number += 1
    return root


def places(root: Path, **changes: object) -> Lists:
    return Lists(**{"root": str(root), "dataset": "places_lt", "num_classes": 3, "image_size": 32} | changes)  # type: ignore[arg-type]


def lists_of(root: Path) -> dict[str, str]:
    return {f"{split}_list": str(root / name) for split, name in (("train", TRAIN), ("val", VAL), ("test", TEST))}


# Class 2 has three training pictures, classes 0 and 1 two each: the new order is 2, 0, 1.
SMALL = {
    TRAIN: [
        "data_256/a/airfield/1.jpg 0",
        "data_256/a/airfield/2 (old).jpg 0",
        "data_256/b/bazaar/indoor/1.jpg 1",
        "data_256/b/bazaar/indoor/2.jpg 1",
        *(f"data_256/z/zen garten 图/{number}.jpg 2" for number in range(3)),
    ],
    VAL: ["data_256/a/airfield/9.jpg 0", "data_256/z/zen garten 图/9.jpg 2"],
    TEST: ["val_256/1.jpg 0", "val_256/2.jpg 1", "val_256/3.jpg 2", "val_256/4.jpg 2"],
}

# ---------------------------------------------------------------------------------------------------------------- published


@pytest.mark.parametrize(
    ("name", "num_classes", "pictures", "smallest", "largest"),
    [
        ("ImageNet_LT/ImageNet_LT_val", 1000, 20_000, 20, 20),
        ("ImageNet_LT/ImageNet_LT_test", 1000, 50_000, 50, 50),
        ("ImageNet_LT/ImageNet_LT_forward50", 1000, 12_058, 1, 50),
        ("ImageNet_LT/ImageNet_LT_backward50", 1000, 12_058, 1, 50),
        ("Places_LT/Places_LT_train", 365, 62_500, 5, 4980),
        ("Places_LT/Places_LT_val", 365, 7_300, 20, 20),
        ("Places_LT/Places_LT_test", 365, 36_500, 100, 100),
        ("Places_LT/Places_LT_forward50", 365, 8_989, 2, 100),
        ("Places_LT/Places_LT_backward50", 365, 8_989, 2, 100),
        ("iNaturalist18/iNaturalist18_val", 8142, 24_426, 3, 3),
    ],
)
def test_published_lists(published: Path, name: str, num_classes: int, pictures: int, smallest: int, largest: int) -> None:
    paths, labels = read_list(published / f"{name}.txt", num_classes)
    counts = np.bincount(labels, minlength=num_classes)
    assert (len(paths), len(labels), len(counts), counts.min(), counts.max()) == (pictures, pictures, num_classes, smallest, largest)
    first, label = (published / f"{name}.txt").read_text().split("\n")[0].split(" ")
    assert (paths[0], labels[0]) == (first, int(label))


def test_places_is_renumbered_by_a_stable_sort(published: Path) -> None:
    splits = Lists(str(published), "places_lt", 365).splits()
    expected = golden("lt_counts.json")["places_lt_train"]
    original = np.array(expected["counts_original_label_order"])
    order = np.argsort(-original, kind="stable")
    assert splits.label_map == tuple(order.tolist())
    assert splits.classes.counts.tolist() == original[order].tolist()
    assert {name: int(group.sum()) for name, group in splits.classes.groups.items()} == expected["shot"]
    assert splits.classes.names[0] == "amusement_park" and "athletic_field/outdoor" in splits.classes.names
    assert splits.val is not None and splits.test is not None
    for split, name in ((splits.train, "train"), (splits.val, "val"), (splits.test, "test")):
        listed = dict(line.rsplit(" ", 1) for line in (published / f"Places_LT/Places_LT_{name}.txt").read_text().splitlines())
        assert all(order[label] == int(listed[path]) for path, label in zip(split.paths, split.labels.tolist(), strict=True))
        assert len(listed) == len(split.labels)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_test_agnostic_lists_follow_the_renumbering(published: Path, direction: str) -> None:
    test = Lists(str(published), "places_lt", 365, test_list=f"Places_LT/Places_LT_{direction}50.txt").splits().test
    assert test is not None
    counts = torch.bincount(test.labels, minlength=365)
    if direction == "backward":
        counts = counts.flip(0)
    assert (counts[0], counts[-1], len(test.labels)) == (100, 2, 8_989)
    # SADE renumbered with an unstable sort, so its counts fall with ours except among classes of equal size
    assert np.corrcoef(counts, counts.sort(descending=True).values)[0, 1] > 0.99


def test_imagenet_is_not_renumbered_and_named_after_its_folders(published: Path) -> None:
    # The published training list is not among ours: the validation list, whose prefix is the same, stands in for it.
    splits = Lists(str(published), "imagenet_lt", 1000, train_list=str(published / "ImageNet_LT/ImageNet_LT_val.txt")).splits()
    assert splits.label_map is None and splits.classes.names[:2] == ("n01440764", "n01443537")
    assert splits.test is not None and splits.test.labels[:2].tolist() == [0, 0]


# ---------------------------------------------------------------------------------------------------------------- own lists


def test_lists_to_pictures(tmp_path: Path) -> None:
    splits = places(write(tmp_path / "Places", SMALL)).splits()
    assert splits.classes.names == ("zen garten 图", "airfield", "bazaar/indoor")
    assert (splits.label_map, splits.classes.counts.tolist()) == ((2, 0, 1), [3, 2, 2])
    assert splits.val is not None and splits.test is not None
    assert splits.val.labels.tolist() == [1, 0] and splits.test.labels.tolist() == [1, 2, 0, 0]
    assert list(splits.test.paths) == [line.rsplit(" ", 1)[0] for line in SMALL[TEST]]
    # 7 training and 2 validation pictures come before the test split's own
    assert splits.test.plain(torch.tensor([3]))[0, :, 16, 16].tolist() == [12, 24, 243]
    assert splits.notes == ("1 class (bazaar/indoor) has no validation picture, so its averages go without",)


def test_lists_lie_in_the_root_beside_it_or_where_they_are_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "pictures", SMALL)
    for place in (root, tmp_path, tmp_path / "Places_LT"):  # moved on, one file at a time
        assert places(root).splits().classes.counts.tolist() == [3, 2, 2]
        for name in (TRAIN, VAL, TEST):
            old = next(file for file in (root / name, root / Path(name).name, tmp_path / Path(name).name, tmp_path / name) if file.exists())
            place.mkdir(exist_ok=True)
            old.rename(place / Path(name).name)
    (tmp_path / "Places_LT" / "Places_LT_test.txt").rename(tmp_path / "mine.txt")
    with pytest.raises(UserError, match=r"pictures holds no Places_LT/Places_LT_test.txt, nor does .*data.test_list=FILE"):
        places(root).splits()
    monkeypatch.chdir(tmp_path)
    assert len(places(root, test_list="mine.txt").splits().test.labels) == 4  # type: ignore[union-attr]
    (tmp_path / "mine.txt").rename(root / "mine.txt")
    assert len(places(root, test_list="mine.txt").splits().test.labels) == 4  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"^data.test_list=other.txt: there is no such file, neither here nor in .*pictures$"):
        places(root, test_list="other.txt").splits()


def test_some_classes_keep_their_numbers_in_the_label_map(tmp_path: Path) -> None:
    splits = places(write(tmp_path, SMALL), classes=["bazaar/indoor", "zen garten 图"]).splits()
    assert splits.classes.names == ("bazaar/indoor", "zen garten 图") and splits.label_map == (1, 2)
    assert splits.test is not None and splits.test.labels.tolist() == [0, 1, 1]
    assert list(splits.test.paths) == ["val_256/2.jpg", "val_256/3.jpg", "val_256/4.jpg"]
    assert places(tmp_path, dataset="imagenet_lt", **lists_of(tmp_path), classes=["b/bazaar/indoor"]).splits().label_map == (1,)


def test_a_zip_of_pictures_with_lists_beside_it(tmp_path: Path) -> None:
    root = write(tmp_path / "Places", SMALL)
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for file in (file for folder in ("data_256", "val_256") for file in (root / folder).rglob("*.jpg")):
            archive.write(file, file.relative_to(root).as_posix())
    (root / "Places_LT").rename(tmp_path / "Places_LT")
    zipped, plain = places(tmp_path / "p.zip").splits(), places(root).splits()
    assert torch.equal(zipped.train.plain(torch.arange(7)), plain.train.plain(torch.arange(7)))


def test_no_validation_list_is_no_validation_split(tmp_path: Path) -> None:
    root = write(tmp_path, SMALL)
    (root / VAL).unlink()
    splits = places(root).splits()
    assert splits.val is None and splits.notes[0].startswith("there is no Places_LT_val.txt")


def test_a_missing_picture_is_named_when_it_is_asked_for(tmp_path: Path) -> None:
    root = write(tmp_path, SMALL)
    (root / "val_256/2.jpg").unlink()
    test = places(root).splits().test
    assert test is not None and test.plain(torch.tensor([0])).shape == (1, 3, 32, 32)
    with pytest.raises(UserError, match=r"val_256/2.jpg cannot be read"):
        test.plain(torch.tensor([1]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 0\nb.jpg\n", r"line 2: 'b.jpg' is no picture with its class"),
        ("a.jpg 0\n\nb.jpg one\n", r"line 3: 'b.jpg one' is no picture with its class"),
        ("a.jpg 1.0\n", r"line 1: 'a.jpg 1.0' is no picture"),
        ("a.jpg 3\n", r"line 1: class 3 of a.jpg: expected 0 to 2 \(data.num_classes=3\)"),
        ("a.jpg -1\n", r"line 1: class -1 of a.jpg: expected 0 to 2"),
        ("a.jpg 99999999999999999999\n", r"line 1: class 99999999999999999999 of a.jpg: expected 0 to 2"),
        ("a.jpg 0\nb.jpg 1\na.jpg 1\n", r"line 3: a.jpg was listed before"),
        ("\n \n", r"lists no pictures: expected one a line, relative/path label"),
        ("7\n", r"line 1: '7' is no picture with its class"),
    ],
)
def test_lines_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=rf"list.txt(, | ){message}") as refusal:
        read_list(tmp_path / "list.txt", 3)
    assert "\n" not in str(refusal.value)


def test_lines_that_are_taken(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("\ufeffa b/c  d.jpg 0\r\n\r\nümlaut.jpg\t2 \r\n x.jpg 1".encode())
    paths, labels = read_list(tmp_path / "list.txt", 3)
    assert (list(paths), labels.tolist()) == (["a b/c  d.jpg", "ümlaut.jpg", " x.jpg"], [0, 2, 1])


def test_a_class_without_training_pictures_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^class '3' has no training picture"):
        places(write(tmp_path, SMALL), num_classes=4).splits()


def test_classes_are_numbered_where_folders_do_not_name_them() -> None:
    labels = np.array([0, 1, 1])
    assert class_names(Paths(["t/x/1", "t/y/1", "t/z/2"]), labels, 2, 1) == ("x", "y")
    assert class_names(Paths(["t/x/1", "t/x/2", "t/z/2"]), labels, 2, 1) == ("0", "1")
    assert class_names(Paths(["t/1", "t/2", "t/z/2"]), labels, 2, 1) == ("0", "1")


def test_find_list_prefers_the_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    for place in (tmp_path, tmp_path / "root"):
        (place / "a.txt").touch()
    assert find_list(tmp_path / "root", "train_list", None, ["L/a.txt"]) == tmp_path / "root" / "a.txt"
    assert find_list(tmp_path / "root", "train_list", None, ["L/b.txt"], required=False) is None


def test_workers_get_no_string_for_each_picture(tmp_path: Path) -> None:
    """Of a million paths they would be 100 MiB in each worker, copied page by page as they are counted. The buffer is one object."""

    def texts_below(start: object) -> set[str]:
        seen, waiting, texts = {id(start)}, [start], set()
        while waiting:
            for part in gc.get_referents(waiting.pop()):
                if isinstance(part, str):
                    texts.add(part)
                elif id(part) not in seen and not isinstance(part, type | ModuleType | FunctionType):
                    seen.add(id(part))
                    waiting.append(part)
        return texts

    numbers = range(300)
    for split in ("train", "test"):
        lines = "".join(f"train/n{number % 3}/{number}.JPEG {number % 3}\n" for number in numbers)
        (tmp_path / f"ImageNet_LT_{split}.txt").write_text(lines, encoding="utf-8")
    pictures = Lists(str(tmp_path), "imagenet_lt", 3).splits().train
    assert {"train/n0/0.JPEG", "train/n2/299.JPEG"} <= texts_below(pictures._replace(paths=tuple(pictures.paths)))
    dataset = PictureBatches(pictures, num_views=2)
    assert isinstance(dataset.pictures.images, Files) and dataset.pictures.images.shape[0] == 300
    assert not [text for text in texts_below(dataset) if text.endswith(".JPEG")]


def test_paths_come_back_as_they_were_given() -> None:
    plain, others = ["a/1.jpg", "", "b/22.jpg"], ["ä/1.jpg", "a", "x\udcff.jpg", "日本"]
    for texts in (plain, others, [], ["only"]):
        paths = Paths(iter(texts))
        assert list(paths) == [paths[row] for row in range(len(paths))] == texts
        assert list(paths.take(np.arange(len(texts))[::-2])) == texts[::-2]
