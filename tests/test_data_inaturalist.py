"""iNaturalist from JSON files and lists: golden/inaturalist has small files in the formats of the real ones."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from conftest import GOLDEN, ROOT
from mdcs.data.inaturalist import INaturalist, distinct, read_file
from mdcs.errors import UserError

FIXTURES = GOLDEN / "inaturalist"
PUBLISHED = ROOT.parent / "shared" / "data" / "lists.zip"


def source(root: Path, year: int, num_classes: int, **changes: Any) -> INaturalist:
    return INaturalist(str(root), year, num_classes, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("year", "names", "train", "test"),
    [
        (2017, ("Delta four", "Epsilon Five"), {"train_val_images/Aves/300.jpg": 0, "train_val_images/Aves/301.jpg": 1}, ["400.jpg"]),
        (
            2018,
            ("Alpha one", "Beta Two", "gamma three"),
            {"train_val2018/Aves/100.jpg": 1, "train_val2018/Aves/101.jpg": 2, "train_val2018/Aves/102.jpg": 0},
            ["200.jpg"],
        ),
        (
            2021,
            ("Lumbricus terrestris", "Sabella spallanzanii", "Apis Mellifera"),
            {"train/00010.jpg": 2, "train/00011.jpg": 0, "train/00012.jpg": 1, "train/00013.jpg": 2},
            ["00020.jpg"],
        ),
    ],
)
def test_json_files_are_read_as_by_the_published_reader(year: int, names: tuple[str, ...], train: dict[str, int], test: list[str]) -> None:
    splits = source(FIXTURES / str(year), year, len(names)).splits()
    assert splits.classes.names == names and splits.val is None and splits.test is not None
    assert dict(zip(splits.train.paths, splits.train.labels.tolist(), strict=True)) == train
    assert [Path(path).name for path in splits.test.paths] == test
    assert splits.label_map is None and splits.classes.counts.tolist() == [list(train.values()).count(label) for label in range(len(names))]


def change(content: dict[str, Any], *keys: Any, to: Any) -> dict[str, Any]:
    """A copy with the value at `keys` replaced."""
    copy = json.loads(json.dumps(content))
    place = copy
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    return copy  # type: ignore[no-any-return]


GOOD = {
    "categories": [{"id": 70, "name": "b"}, {"id": 4, "name": "a"}],
    "images": [{"id": 9, "file_name": "x/1.jpg"}, {"id": 5, "file_name": "x/2.jpg"}, {"id": 7, "file_name": "y/3.jpg"}],
    "annotations": [
        {"id": 0, "image_id": 7, "category_id": 70},
        {"id": 1, "image_id": 9, "category_id": 4},
        {"id": 2, "image_id": 5, "category_id": 70},
    ],
}


def test_annotations_are_found_by_their_image_and_categories_by_their_number(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(GOOD))
    (paths, labels), names = read_file(tmp_path / "a.json", 2)
    assert (list(paths), labels.tolist(), names) == (["x/1.jpg", "x/2.jpg", "y/3.jpg"], [0, 1, 1], ("a", "b"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (change(GOOD, "annotations", 0, "image_id", to=8), "an annotation is of image 8, which is not in the file"),
        (change(GOOD, "annotations", 0, "category_id", to=3), "an annotation names category 3, which is not in the file"),
        (change(GOOD, "annotations", 0, "image_id", to=9), r"image y/3.jpg has no annotation"),
        (
            change(GOOD, "annotations", to=[*GOOD["annotations"], {"image_id": 9, "category_id": 70}]),
            r"image x/1.jpg has annotations of sev",
        ),
        (change(GOOD, "images", 0, "id", to=5), "several images have the id 5"),
        (change(GOOD, "images", 0, to={"file_name": "x"}), "an image or annotation without 'id'"),
        (change(GOOD, "images", 0, "id", to="nine"), "not as iNaturalist's files are"),
        (change(GOOD, "categories", 0, to={"id": 1}), "not as iNaturalist's files are"),
        (change(GOOD, "categories", to=GOOD["categories"][:1]), "an annotation names category 4, which is not in the file"),
        (change(GOOD, "images", to=[]), "no pictures"),
        ({"images": []}, "expected an object with images, annotations and categories"),
        ([], "expected an object with images, annotations and categories"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"^{tmp_path}/a.json(:| is| lists)? ?{message}") as refusal:
        read_file(tmp_path / "a.json", 2)
    assert "\n" not in str(refusal.value)


def test_a_damaged_file_and_another_year_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(GOOD)[:-9])
    with pytest.raises(UserError, match=r"a.json cannot be read as JSON"):
        read_file(tmp_path / "a.json", 2)
    with pytest.raises(UserError, match=r"has 3 categories, but data.num_classes=8142: is it of another year\?$"):
        source(FIXTURES / "2018", 2018, 8142).splits()
    with pytest.raises(UserError, match=r"holds no train_mini.json, nor does"):
        source(FIXTURES / "2021", 2021, 3, mini=True).splits()
    with pytest.raises(UserError, match=r"^data.mini=true: there is no smaller training set of 2018"):
        source(FIXTURES / "2018", 2018, 3, mini=True).splits()


def test_lists_and_json_files_of_2018_give_the_same_labels(tmp_path: Path) -> None:
    by_json = source(FIXTURES / "2018", 2018, 3).splits()
    (tmp_path / "iNaturalist18").mkdir()
    for split, pictures in (("train", by_json.train), ("val", by_json.test)):
        assert pictures is not None
        lines = [
            f"train_val2018/Kingdom/{label}/{Path(path).name} {label}\n"
            for path, label in zip(pictures.paths, pictures.labels.tolist(), strict=True)
        ]
        (tmp_path / "iNaturalist18" / f"iNaturalist18_{split}.txt").write_text("".join(lines))
    by_list = source(tmp_path, 2018, 3).splits()
    assert by_list.classes.names == ("0", "1", "2")
    assert by_list.train.labels.tolist() == by_json.train.labels.tolist()
    (tmp_path / "categories.json").write_bytes((FIXTURES / "2018" / "categories.json").read_bytes())
    assert source(tmp_path, 2018, 3).splits().classes.names == by_json.classes.names


def test_two_views_can_be_cut_and_validation_set_aside(tmp_path: Path) -> None:
    for year_file in (FIXTURES / "2021").iterdir():
        (tmp_path / year_file.name).write_bytes(year_file.read_bytes())
    for path in ("train/00010.jpg", "train/00011.jpg", "train/00012.jpg", "train/00013.jpg", "val/00020.jpg"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.linear_gradient("L").save(tmp_path / path)
    splits = source(tmp_path, 2021, 3, val_fraction=0.5, image_size=96).splits()
    assert splits.val is not None and splits.val.labels.tolist() == [2] and len(splits.train.labels) == 3
    index = torch.arange(3)
    views = splits.train.images.random(index, index, 0, 0, 2)  # type: ignore[union-attr]
    assert views.shape == (2, 3, 3, 96, 96) and not torch.equal(views[0], views[1])


def test_classes_of_one_name_are_told_apart() -> None:
    assert distinct(["a", "b", "a"]) == ("a (0)", "b", "a (2)")


def test_published_validation_list_is_the_test_split(tmp_path: Path) -> None:
    if not PUBLISHED.exists():
        pytest.skip(f"no {PUBLISHED}")
    with zipfile.ZipFile(PUBLISHED) as archive:
        content = archive.read("iNaturalist18/iNaturalist18_val.txt")
    for split in ("train", "val"):  # the published training list is not among ours
        (tmp_path / f"iNaturalist18_{split}.txt").write_bytes(content)
    splits = source(tmp_path, 2018, 8142).splits()
    assert splits.test is not None and torch.bincount(splits.test.labels).tolist() == [3] * 8142
    assert splits.classes.names[:2] == ("0", "1")
