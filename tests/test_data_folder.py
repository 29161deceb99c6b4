"""Own pictures in class folders: every layout, every container, and what is said about what is odd."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mdcs.data import folder as module
from mdcs.data import survey as survey_module
from mdcs.data.files import Files
from mdcs.data.folder import Folder, misspelt, quantile_thresholds
from mdcs.data.splits import Splits
from mdcs.data.store import open_store
from mdcs.data.survey import evenly, in_threads, suitable_size
from mdcs.data.tree import class_tree, in_order
from mdcs.errors import UserError
from mdcs.types import Classes

NAMES = ["a b=c", "Ähre", "图片"]


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (30, 32), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def classes(counts: dict[str, int], prefix: str = "", flag: int = 0, size: tuple[int, int] = (30, 32)) -> dict[str, bytes]:
    """Pictures of one colour, (class, number, flag)."""
    return {
        f"{prefix}{name}/{number:03}.png": picture((label, number, flag), size)
        for label, (name, count) in enumerate(counts.items())
        for number in range(count)
    }


PLAIN = classes(dict(zip(NAMES, (20, 10, 3), strict=True)))
SPLIT = {
    f"{split}/{name}": content
    for flag, split in enumerate(("train", "val", "test"))
    for name, content in classes(dict(zip(NAMES, (6, 4, 2) if flag == 0 else (2, 2, 2), strict=True)), flag=flag).items()
}


def write(root: Path, files: dict[str, bytes]) -> Path:
    """As a zip or tar where `root` ends so, else as a folder; a name that ends in "/" is an empty folder."""
    if root.suffix == ".zip":
        with zipfile.ZipFile(root, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    elif root.suffix in (".tar", ".tgz"):
        with tarfile.open(root, "w:gz" if root.suffix == ".tgz" else "w") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size, info.type = len(content), tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
                archive.addfile(info, io.BytesIO(content))
    else:
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).mkdir() if name.endswith("/") else (root / name).write_bytes(content)
    return root


def small(root: Path, **settings: object) -> Splits:
    return Folder(str(root), image_size=32, **settings).splits()  # type: ignore[arg-type]


def noted(splits: Splits, *words: str) -> bool:
    return any(all(word in note for word in words) for note in splits.notes)


def check_pixels(splits: Splits) -> None:
    """Each picture is the one that its path names."""
    for pictures in splits.named().values():
        assert isinstance(pictures.images, Tensor) and pictures.images.shape[1:] == (3, 32, 32)
        for image, label, path in zip(pictures.images, pictures.labels, pictures.paths, strict=True):
            name = path.split("/")[-2]
            assert splits.classes.names[int(label)] == name
            flag = next((flag for flag, split in enumerate(("train", "val", "test")) if f"{split}/" in path), 0)
            assert image[:, 3, 5].tolist() == [NAMES.index(name), int(Path(path).stem), flag]


FORMS = pytest.mark.parametrize("form", ["bilder 图 = 1", "x.zip", "x.tar", "x.tgz"])


@FORMS
@pytest.mark.parametrize("top", ["", "photos, all/", "one/two/"])
def test_class_folders(tmp_path: Path, form: str, top: str) -> None:
    junk = {"__MACOSX/x/1.png": b"", "Ähre/.hidden.png": b"", "Ähre/notes.txt": b"x", "README.md": b"x"}
    splits = small(write(tmp_path / form, {top + name: content for name, content in (PLAIN | junk).items()}))
    check_pixels(splits)
    assert splits.classes.names == tuple(NAMES) and splits.counts_before_validation == (20, 10, 3)
    assert splits.test is None and splits.val is not None and splits.scored == "val"
    assert torch.bincount(splits.val.labels).tolist() == [2, 1, 1]
    assert splits.classes.counts.tolist() == [18, 9, 2]
    assert sorted([*splits.train.paths, *splits.val.paths]) == sorted(top + name for name in PLAIN)
    assert noted(splits, "1 file of other kinds than pictures", "notes.txt")
    assert noted(splits, "the pictures are those in", top) == bool(top)


@FORMS
@pytest.mark.parametrize("there", ["train val test", "train val", "train test", "train"])
def test_split_folders(tmp_path: Path, form: str, there: str) -> None:
    files = {name: content for name, content in SPLIT.items() if name.split("/")[0] in there.split()}
    splits = small(write(tmp_path / form, files), val_fraction=0.25)
    check_pixels(splits)
    assert (splits.test is not None) == ("test" in there)
    assert splits.val is not None
    carved = "val" not in there
    assert torch.bincount(splits.val.labels).tolist() == ([2, 1, 1] if carved else [2, 2, 2])
    assert all(path.startswith("train/" if carved else "val/") for path in splits.val.paths)
    assert splits.classes.counts.tolist() == ([4, 3, 1] if carved else [6, 4, 2])
    assert splits.notes == ()


def test_other_names_of_splits(tmp_path: Path) -> None:
    names = {"train": "Training", "val": "valid", "test": "TEST"}
    files = {f"{names[name.split('/')[0]]}/{name.partition('/')[2]}": content for name, content in SPLIT.items()}
    splits = small(write(tmp_path, files))
    assert {name: len(pictures.labels) for name, pictures in splits.named().items()} == {"train": 12, "val": 6, "test": 6}
    write(tmp_path, {"val/Ähre/9.png": picture((1, 9, 1))})
    with pytest.raises(UserError, match="val/ and valid/ would both be the val split"):
        small(tmp_path)


def test_a_folder_of_folders_that_hold_splits(tmp_path: Path) -> None:
    root = write(tmp_path, {f"mine/{name}": content for name, content in SPLIT.items()} | {"extra/1.png": picture((0, 0, 0))})
    splits = small(root)
    check_pixels(splits)
    assert noted(splits, "1 picture in no class folder: extra (1)") and noted(splits, "those in mine/")
    write(tmp_path, {f"yours/{name}": content for name, content in SPLIT.items()})
    with pytest.raises(UserError, match=r"several do: mine/, yours/; set data\.root to one"):
        small(root)


def test_nested_class_folders_and_pictures_beside_them(tmp_path: Path) -> None:
    nested = {"Ähre/deep/er/100.png": picture((1, 100, 0)), "5.png": picture((9, 9, 9))}
    splits = small(write(tmp_path, PLAIN | nested))
    assert splits.counts_before_validation == (20, 11, 3)
    assert noted(splits, "a class is the first folder", "Ähre/deep/er", "of class 'Ähre'")
    assert noted(splits, "1 picture in no class folder: at the top (1)")


def test_train_is_a_class_where_it_holds_no_folders(tmp_path: Path) -> None:
    splits = small(write(tmp_path, classes({"bus": 4, "train": 5})))
    assert splits.classes.names == ("bus", "train") and splits.counts_before_validation == (4, 5)
    assert noted(small(write(tmp_path, SPLIT)), "in no class folder")  # now it does


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1.png": picture((0, 0, 0))}, r"expected <class>/<picture>.*pictures lie in no class folder, such as 1\.png"),
        ({"a/notes.txt": b"x"}, r"expected <class>/<picture>.*no picture was found"),
        ({"leer/": b""}, r"no picture was found"),
        ({"train/1.png": b"", "test/1.png": b""}, r"its train/ holds no class folders"),
        ({"val/a/1.png": b"", "test/a/1.png": b""}, r"it has test, val and no train/"),
        ({"train/a/": b"", "test/a/1.png": picture((0, 0, 0)), "val/a/1.png": picture((0, 0, 0))}, r"it has test, val and no train/"),
    ],
)
def test_layouts_that_are_refused(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        small(write(tmp_path / "root", files))
    assert "\n" not in str(caught.value)


def test_names_that_no_file_of_a_run_can_hold(tmp_path: Path) -> None:
    for number, name in enumerate([b"b\xe4r/1.png", b"bee/\xe4.png"]):
        root = tmp_path / str(number)
        place = os.fsencode(root) + b"/" + name
        os.makedirs(os.path.dirname(place))
        Path(os.fsdecode(place)).write_bytes(b"1")
        with pytest.raises(UserError, match=r"the name [/\w]*\\xe4[r.png]* is not UTF-8.*: rename what is called so"):
            class_tree(open_store(root))
    Path(os.fsdecode(place)).rename(root / "bee" / "1.png")
    Path(os.fsdecode(place)).with_suffix(".txt").write_bytes(b"1")
    assert class_tree(open_store(root)).names == ("bee",)  # what is no picture does not matter


def test_classes_without_pictures(tmp_path: Path) -> None:
    files = {name: content for name, content in SPLIT.items() if name.split("/")[:2] not in (["train", "Ähre"], ["test", "图片"])}
    splits = small(write(tmp_path, files | {"train/leer/": b""}))
    assert splits.classes.names == ("a b=c", "图片")
    assert noted(splits, "2 classes (leer, Ähre) have no training picture; what is in them elsewhere was left out")
    assert noted(splits, "1 class (图片) has no test picture")
    assert splits.test is not None and splits.test.labels.tolist() == [0, 0]
    with pytest.raises(UserError, match="class 'Ähre' has no training picture"):
        small(tmp_path, classes=["Ähre", "图片"])


def test_single_pictures_and_chosen_classes(tmp_path: Path) -> None:
    splits = small(write(tmp_path, classes({"a": 5, "b": 1, "c": 2})), classes=["c", "b"])
    assert splits.classes.names == ("c", "b") and splits.classes.counts.tolist() == [1, 1]
    assert splits.val is not None and splits.val.labels.tolist() == [0]
    assert noted(splits, "1 class (b) has a single training picture")


def test_nothing_to_judge_by(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither a test nor a validation split.*data\.val_fraction"):
        small(write(tmp_path, PLAIN), val_fraction=0.0)


def test_numbers_are_ordered_as_numbers() -> None:
    assert in_order(["10", "9", "2"]) == ("2", "9", "10") and in_order(["10", "9", "b"]) == ("10", "9", "b")


def test_every_listing_is_the_same(tmp_path: Path) -> None:
    first = small(write(tmp_path / "a", PLAIN))
    again = small(write(tmp_path / "b", dict(reversed(PLAIN.items()))))
    assert list(first.train.paths) == list(again.train.paths) and torch.equal(first.train.images, again.train.images)  # type: ignore[arg-type]


# ---- sizes


def test_suitable_sizes() -> None:
    sides = (1, 32, 47, 49, 64, 95, 97, 128, 175, 177, 224, 4000)
    assert [suitable_size(side) for side in sides] == [32, 32, 32, 64, 64, 64, 128, 128, 128, 224, 224, 224]


@pytest.mark.parametrize(("side", "expected"), [(20, 32), (70, 64), (140, 128), (300, 224)])
def test_size_follows_from_the_pictures(tmp_path: Path, side: int, expected: int) -> None:
    files = classes({"a": 4, "b": 3}, size=(side, side + 10)) | {"b/bad.png": b"bad", "a/large.png": picture((9, 9, 9), (900, 800))}
    source = Folder(str(write(tmp_path, files)), on_bad="skip")
    survey = source.survey()
    assert survey.image_size == expected and survey.num_pictures == 9
    assert ": 9 train pictures in 2 classes; data.val_fraction=0.1 of train becomes val, class by class; " in survey.lines[0]
    assert f"{side} pixels in the median of 8 pictures, from {side} to 800" in survey.lines[1]
    splits = source.splits()
    assert splits.train.images.shape[1:] == (3, expected, expected)
    assert isinstance(splits.train.images, Tensor if expected <= 64 else Files)


def test_survey_says_how_the_pictures_are_divided(tmp_path: Path) -> None:
    divided = Folder(str(write(tmp_path / "all", SPLIT))).survey().lines[0]
    assert divided == f"{tmp_path / 'all'}: 12 train + 6 val + 6 test pictures in 3 classes"
    some = Folder(str(tmp_path / "all"), classes=["Ähre"]).survey().lines[0]
    assert some.endswith(": 4 train + 2 val + 2 test pictures in 1 class")
    without_val = {name: content for name, content in SPLIT.items() if not name.startswith("val")}
    divided = Folder(str(write(tmp_path / "no val.zip", without_val)), val_fraction=0.25).survey().lines[0]
    assert divided.endswith("12 train + 6 test pictures in 3 classes; data.val_fraction=0.25 of train becomes val, class by class")
    without_test = {name: content for name, content in SPLIT.items() if not name.startswith("test")}
    divided = Folder(str(write(tmp_path / "no test", without_test))).survey().lines[0]
    assert divided.endswith("12 train + 6 val pictures in 3 classes; the run is scored on val, as there is no test")


def test_survey_of_chosen_classes_and_of_nothing_readable(tmp_path: Path) -> None:
    write(tmp_path, classes({"a": 3}, size=(100, 100)) | classes({"b": 5}, size=(20, 20)) | {"c/1.png": b"bad"})
    assert Folder(str(tmp_path), classes=["a"]).survey()[:2] == (128, 3)
    with pytest.raises(UserError, match=r"none of 1 pictures can be read: c/1\.png"):
        Folder(str(tmp_path), classes=["c"]).survey()
    with pytest.raises(UserError, match=r"^data\.classes: no class 'd' among the 3 of this dataset"):
        Folder(str(tmp_path), classes=["d"]).survey()
    write(tmp_path, {"d/": b""})
    with pytest.raises(UserError, match=r"^class 'd' has no training picture"):
        Folder(str(tmp_path), classes=["d"]).survey()


def test_survey_looks_at_some_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "LOOKED_AT", 5)
    assert "in the median of 5 pictures" in Folder(str(write(tmp_path, PLAIN))).survey().lines[1]
    assert evenly(10, 4).tolist() == [0, 3, 6, 9] and evenly(3, 5).tolist() == [0, 1, 2] and evenly(0, 5).tolist() == []


def test_pictures_of_any_shape_become_squares(tmp_path: Path) -> None:
    files = {f"{name}/{number}.png": picture((5, 6, 7), size) for name in "ab" for number, size in enumerate(((1, 1), (9, 400), (50, 40)))}
    splits = small(write(tmp_path, files))
    assert isinstance(splits.train.images, Tensor)
    assert splits.train.images.shape == (4, 3, 32, 32) and splits.train.images[:, 2].eq(7).all()


def test_large_pictures_are_decoded_when_asked_for(tmp_path: Path) -> None:
    root = write(tmp_path, PLAIN)
    splits = Folder(str(root), image_size=96).splits()
    images = splits.train.images
    assert isinstance(images, Files) and images.shape == (29, 3, 96, 96)
    square = images.plain(torch.tensor([3]))[0, :, 40, 50].tolist()
    name, number = Path(splits.train.paths[3]).parts[-2:]
    assert square == [NAMES.index(name), int(Path(number).stem), 0]


# ---- files that cannot be read


BAD = {"Ähre/003.png": b"no picture", "图片/001.png": PLAIN["图片/001.png"][:50], "Ähre/004.png": b""}


@FORMS
@pytest.mark.parametrize("image_size", [32, 96])
def test_bad_pictures_stop(tmp_path: Path, form: str, image_size: int) -> None:
    root = write(tmp_path / form, PLAIN | BAD)
    seen = "3" if image_size == 32 else "2|3"  # damage behind a header goes unseen where only headers are read
    with pytest.raises(UserError, match=rf"^({seen}) of 33 pictures cannot be used: Ähre/003\.png .*data\.on_bad=skip$") as caught:
        Folder(str(root), image_size=image_size).splits()
    assert "\n" not in str(caught.value) and "Ähre/004.png" in str(caught.value)


@FORMS
@pytest.mark.parametrize("image_size", [32, 96])
def test_bad_pictures_are_left_out(tmp_path: Path, form: str, image_size: int) -> None:
    splits = Folder(str(write(tmp_path / form, PLAIN | BAD)), image_size=image_size, on_bad="skip").splits()
    assert splits.counts_before_validation == (20, 8, 2)
    assert noted(splits, "3 of 33 pictures cannot be read, so left out: ", *BAD) and noted(splits, "Ähre/004.png (the file is empty)")
    for pictures in splits.named().values():
        assert not set(pictures.paths) & set(BAD)
        assert pictures.plain(torch.arange(len(pictures.labels))).shape[1:] == (3, image_size, image_size)
    if image_size == 32:
        check_pixels(splits)


def test_a_class_of_bad_pictures_only(tmp_path: Path) -> None:
    bad = {name: b"bad" for name in PLAIN if name.startswith("Ähre")}
    splits = small(write(tmp_path, PLAIN | bad), on_bad="skip")
    assert splits.classes.names == ("a b=c", "图片") and noted(splits, "no training picture", "Ähre")


def test_bad_pictures_of_other_classes_do_not_matter(tmp_path: Path) -> None:
    splits = small(write(tmp_path, PLAIN | {"Ähre/003.png": b"bad"}), classes=["a b=c", "图片"])
    check_pixels(splits)


def test_headers_of_some_pictures_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_MEASURED", 2)  # the first and the last
    root = write(tmp_path, PLAIN | BAD)
    assert Folder(str(root), image_size=96).splits().counts_before_validation == (20, 10, 3)
    write(tmp_path, {"a b=c/000.png": b"bad"})
    with pytest.raises(UserError, match=r"a b=c/000\.png"):
        Folder(str(root), image_size=96).splits()


def test_broken_links_are_named(tmp_path: Path) -> None:
    write(tmp_path, PLAIN)
    os.symlink("nowhere", tmp_path / "Ähre" / "gone.png")
    with pytest.raises(UserError, match=r"Ähre/gone\.png cannot be read \(No such file"):
        small(tmp_path)


# ---- duplicates


@FORMS
def test_duplicates_across_splits(tmp_path: Path, form: str) -> None:
    same = SPLIT["train/Ähre/000.png"]
    splits = small(write(tmp_path / form, SPLIT | {"test/图片/900.png": same, "val/Ähre/901.png": same}))
    assert noted(splits, "1 picture of test is in train too, byte for byte", "test/图片/900.png = train/Ähre/000.png")
    assert noted(splits, "1 picture of val is in train too, byte for byte", "val/Ähre/901.png = train/Ähre/000.png")
    assert len(splits.notes) == 2


def test_duplicates_after_validation_was_carved(tmp_path: Path) -> None:
    files = {f"{name}/{number}.png": picture((7, 7, number // 2)) for name in "ab" for number in range(20)}
    splits = small(write(tmp_path, files), val_fraction=0.5)
    assert splits.val is not None
    train, val = ([files[path] for path in pictures.paths] for pictures in (splits.train, splits.val))
    expected = sum(content in train for content in val)
    assert expected and noted(splits, f"{expected} pictures of val are in train too, byte for byte")


def test_equal_sizes_are_no_duplicates(tmp_path: Path) -> None:
    head = picture((1, 2, 3), kind="BMP") + b"x" * 5000  # alike up to the last byte
    files = {
        f"{split}/{name}/1.bmp": head + bytes([number])
        for number, (split, name) in enumerate((s, n) for s in ("train", "test") for n in "ab")
    }
    assert small(write(tmp_path, files | {"train/a/2.bmp": head + b"9"})).notes == (
        "1 class (b) has a single training picture, so none in the validation split",
    )


# ---- shot groups


@pytest.mark.parametrize(
    ("counts", "many", "few"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], 3, 3),
        ([500, 299, 179, 107, 64, 38, 23, 13, 8, 5], 3, 3),
        ([5, 5, 5, 5], 0, 0),
        ([9, 9, 1, 1], 2, 2),
        ([9, 1, 1, 1, 1, 1], 1, 0),
        ([9, 9, 9, 9, 9, 1], 0, 1),
        ([3, 2], 1, 1),
        ([7], 0, 0),
    ],
)
def test_quantiles(counts: list[int], many: int, few: int) -> None:
    many_above, few_below = quantile_thresholds(counts)
    groups = Classes(tuple(map(str, counts)), torch.tensor(counts), many_above, few_below).groups
    assert (int(groups["many"].sum()), int(groups["few"].sum())) == (many, few)


def test_quantiles_are_as_near_to_a_third_as_any_thresholds() -> None:
    random = np.random.RandomState(0)
    for _ in range(50):
        counts = random.randint(1, 8, random.randint(2, 12)).tolist()
        many_above, few_below = quantile_thresholds(counts)
        groups = Classes(tuple(map(str, range(len(counts)))), torch.tensor(counts), many_above, few_below).groups
        for name, sizes in (
            ("many", [sum(count > limit for count in counts) for limit in range(10)]),
            ("few", [sum(count < limit for count in counts) for limit in range(10)]),
        ):
            best = min(abs(size - len(counts) / 3) for size in sizes)
            assert abs(int(groups[name].sum()) - len(counts) / 3) == pytest.approx(best)


def test_shot_groups_of_a_folder(tmp_path: Path) -> None:
    root = write(tmp_path, classes({"a": 30, "b": 20, "c": 10}))
    by_thresholds = small(root, many_above=20, few_below=12).classes
    assert [int(group.sum()) for group in by_thresholds.groups.values()] == [1, 1, 1]
    splits = small(root, shot_groups="quantiles")
    assert (splits.classes.many_above, splits.classes.few_below) == (26, 10)  # of the 27, 18 and 9 trained on
    assert noted(splits, "many above 26 pictures, few below 10 (classes: many 1, medium 1, few 1)")


# ---- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, r"data\.image_size=0"),
        ({"std": [1.0, 1.0]}, r"data\.std=\[1\.0, 1\.0\]: expected three numbers"),
        ({"std": [1.0, 1.0, 0.0]}, r"above 0"),
        ({"val_fraction": 1.5}, r"data\.val_fraction=1\.5"),
        ({"classes": ["zebra"]}, r"no class 'zebra'"),
        ({"root": None}, r"data\.root is missing"),
        ({"root": "/no/where"}, r"there is no such folder"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Folder(**{"root": str(write(tmp_path, PLAIN)), "image_size": 32} | settings).splits()  # type: ignore[arg-type]


def test_threads_keep_the_order() -> None:
    assert list(in_threads(lambda place: place**2, 1000, "squares")) == [place**2 for place in range(1000)]
    assert list(in_threads(lambda place: place, 0, "nothing")) == []


def test_names_that_look_alike_are_asked_about() -> None:
    assert misspelt(["spidr"], ["bee", "spider", "spidr"]) == "; is 'spidr' a misspelt 'spider'?"
    assert misspelt(["class 1"], ["class 1", "class 2"]) == "" and misspelt(["bee"], ["bee", "wolf"]) == ""
