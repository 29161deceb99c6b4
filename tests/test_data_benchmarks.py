"""The benchmarks from their files to a run folder: which splits choose and judge, statistics, transforms, class numbers, the cache."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mdcs
from mdcs.augment.policies import ImageNetStrong, ImageNetWeak
from mdcs.cli import other_words
from mdcs.errors import UserError

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INATURALIST = (0.466, 0.471, 0.380), (0.195, 0.194, 0.192)
COUNTS = (19, 101, 20)  # few-, many- and medium-shot
SHORT = ["model=resnet8", "model.num_experts=2", "data.num_classes=3", "data.image_size=32", "data.batch_size=16", "data.num_workers=0"]
SHORT += ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.accelerator=cpu"]

# By split: the list or JSON file, and where a picture of a number and a class lies, as they are distributed.
LAYOUTS = {
    "imagenet_lt": {
        "train": ("ImageNet_LT/ImageNet_LT_train.txt", "train/n0{label}/n0{label}_{row}.JPEG"),
        "val": ("ImageNet_LT/ImageNet_LT_val.txt", "train/n0{label}/n0{label}_9{row:05}.JPEG"),
        "test": ("ImageNet_LT/ImageNet_LT_test.txt", "val/n0{label}/ILSVRC2012_val_{row:08}.JPEG"),
    },
    "places_lt": {
        "train": ("Places_LT/Places_LT_train.txt", "data_256/n/n0{label}/{row}.jpg"),
        "val": ("Places_LT/Places_LT_val.txt", "data_256/n/n0{label}/9{row:05}.jpg"),
        "test": ("Places_LT/Places_LT_test.txt", "val_256/Places365_val_{label}{row:07}.jpg"),
    },
    "inat17": {
        "train": ("train2017.json", "train_val_images/Aves/n0{label}/{row}.jpg"),
        "test": ("val2017.json", "train_val_images/Aves/n0{label}/9{row:05}.jpg"),
    },
    "inat18": {
        "train": ("iNaturalist18/iNaturalist18_train.txt", "train_val2018/Aves/n0{label}/{row}.jpg"),
        "test": ("iNaturalist18/iNaturalist18_val.txt", "train_val2018/Aves/n0{label}/9{row:05}.jpg"),
    },
    "inat21": {
        "train": ("train_mini.json", "train_mini/n0{label}/{row}.jpg"),
        "test": ("val.json", "val/n0{label}/{row}.jpg"),
    },
}


def laid_out(root: Path, data: str) -> Path:
    """The dataset `data` with three classes below `root`: `COUNTS` to train on, two pictures of each class in the other splits."""
    for split, (name, place) in LAYOUTS[data].items():
        counts = COUNTS if split == "train" else (2, 2, 2)
        listed = [(place.format(row=row, label=label), label) for label, count in enumerate(counts) for row in range(count)]
        for number, (path, label) in enumerate(listed):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (44, 36), (number, 80 * label, 90)).save(root / path, format="PNG")
        text = "".join(f"{path} {label}\n" for path, label in listed)
        if name.endswith(".json"):
            content = {
                "images": [{"id": 500 + number, "file_name": path} for number, (path, _) in enumerate(listed)],
                "annotations": [{"image_id": 500 + number, "category_id": label} for number, (_, label) in enumerate(listed)],
                "categories": [{"id": label, "name": f"n0{label}"} for label in range(3)],
            }
            text = json.dumps(content)
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


def words(data: str, root: Path, *more: str) -> list[str]:
    return [f"data={data}", f"data.root={root}", *SHORT, *(["data.mini=true"] if data == "inat21" else []), *more]


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("data", LAYOUTS)
def test_a_run_follows_the_published_protocol(data: str, tmp_path: Path) -> None:
    """ImageNet-LT and Places-LT choose on their validation lists; of iNaturalist the official validation set is only tested on."""
    root, folder = laid_out(tmp_path / "data", data), tmp_path / "run"
    has_val = "val" in LAYOUTS[data]
    if not has_val:
        with pytest.raises(UserError, match=r"^checkpoint=best needs a validation split"):
            mdcs.run(words(data, root, "checkpoint=best", f"hydra.run.dir={folder}"))
        assert not folder.exists()
    mdcs.run(words(data, root, f"checkpoint={'best' if has_val else 'last'}", f"hydra.run.dir={folder}"))
    assert sorted(place.name for place in (folder / "predictions").iterdir()) == (["test", "val"] if has_val else ["test"])
    assert (folder / "checkpoints" / "best.ckpt").exists() == has_val
    scores, classes, rows = read(folder / "scores.json"), read(folder / "classes.json"), (folder / "subset.csv").read_text().splitlines()
    assert (scores["split"], scores["n"], scores["views"], len(rows)) == ("test", 6, 2, 1 + sum(COUNTS))
    assert None not in [scores[f"accuracy_{name}"] for name in ("many", "medium", "few")]  # one class each

    # only Places-LT is renumbered; the map stays with the checkpoint
    order = [1, 2, 0] if data == "places_lt" else [0, 1, 2]
    assert classes["counts"] == [COUNTS[label] for label in order]
    assert classes["names"] == [f"n0{label}" for label in order]
    assert classes["label_map"] == (order if data == "places_lt" else None)

    run = mdcs.load(folder)
    assert (run.module.augment.mean, run.module.augment.std) == (INATURALIST if data.startswith("inat") else IMAGENET)
    assert [type(policy) for policy in run.module.augment.policies.values()] == [ImageNetWeak, ImageNetStrong]
    assert (run.splits.train.images.crop.scale, run.source.image_size) == ((0.08, 1.0), 32)  # type: ignore[union-attr]


def test_a_run_is_trained_from_the_cache_and_other_test_lists_build_none(tmp_path: Path) -> None:
    root, cache, folder = laid_out(tmp_path / "data", "places_lt"), tmp_path / "cache", tmp_path / "run"
    workers = ["data.num_workers=2", f"data.cache={cache}", "data.sampler=class_balanced", "data.repeats=2"]
    mdcs.run(words("places_lt", root, *workers, f"hydra.run.dir={folder}"))
    before = {file: file.stat().st_mtime_ns for file in cache.rglob("*.*")}
    assert before and f"note: pictures are read from {cache}" in (folder / "run.log").read_text()
    (tmp_path / "backward.txt").write_text(
        "".join(f"val_256/Places365_val_{label}{row:07}.jpg {label}\n" for label, row in ((0, 0), (0, 1), (1, 0)))
    )
    scores = other_words("evaluate", [f"run={folder}", f"data.test_list={tmp_path / 'backward.txt'}"])
    assert [row["n"] for row in scores["per_class"]] == [1, 0, 2]
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*.*")} == before
