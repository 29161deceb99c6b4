"""What is chosen from a folder's pictures, and that the user's words come before it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mdcs.cli import through_hydra, train_words
from mdcs.config import plain
from mdcs.errors import UserError
from mdcs.recipe import composed


def photos(folder: Path, side: int, counts: tuple[int, ...] = (6, 3)) -> Path:
    """Noise of `side` pixels in class folders."""
    random = np.random.RandomState(0)
    for label, count in enumerate(counts):
        (folder / f"class {label}").mkdir(parents=True)
        for number in range(count):
            pixels = random.randint(0, 256, (side, side + 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class {label}" / f"{number}.png")
    return folder


def chosen(*words: str) -> dict[str, Any]:
    return plain(composed(["data=folder", *words])[0])


def test_small_pictures_are_handled_as_those_of_cifar(tmp_path: Path) -> None:
    composition, said = composed(["data=folder", f"data.root={photos(tmp_path / 'small', 30)}"])
    cfg = plain(composition)
    assert cfg["data"]["image_size"] == 32 and cfg["model"]["_target_"].endswith("ResNetCifar") and cfg["model"]["depth"] == 32
    assert cfg["augment"]["weak"]["_target_"].endswith("CifarWeak")
    assert (cfg["data"]["batch_size"], cfg["trainer"]["max_epochs"], cfg["loss"]["warmup_epochs"]) == (32, 100, 5)
    (line,) = [line for line in said if line.startswith("chosen")]
    again = plain(composed(["data=folder", f"data.root={tmp_path / 'small'}", *line.partition(": ")[2].split()])[0])
    assert again == cfg  # what is printed is what was done


def test_large_pictures_are_handled_as_those_of_imagenet(tmp_path: Path) -> None:
    cfg = chosen(f"data.root={photos(tmp_path / 'large', 250)}")
    assert cfg["data"]["image_size"] == 224 and cfg["model"]["_target_"].endswith("ResNet") and cfg["model"]["depth"] == 50
    assert cfg["augment"]["strong"]["_target_"].endswith("ImageNetStrong") and cfg["data"]["num_workers"] >= 1


def test_the_users_words_come_first(tmp_path: Path) -> None:
    root = f"data.root={photos(tmp_path / 'photos', 30)}"
    cfg = chosen(root, "model=resnet10", "model.share_layer3=true", "data.image_size=96", "augment=none", "data.batch_size=8")
    assert (cfg["model"]["depth"], cfg["model"]["share_layer3"], cfg["data"]["image_size"], cfg["data"]["batch_size"]) == (10, True, 96, 8)
    assert cfg["augment"]["weak"]["_target_"].endswith("Identity")
    cfg = chosen(root, "trainer.max_epochs=7", "model.depth=20", "model.num_experts=2", "loss=ce", "data.image_size=auto")
    assert (cfg["trainer"]["max_epochs"], cfg["model"]["depth"], cfg["model"]["num_experts"], cfg["data"]["image_size"]) == (7, 20, 2, 32)


def test_other_datasets_are_left_alone() -> None:
    assert plain(composed([])[0]) == plain(composed(["data=digits"])[0])


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_a_folder_trains_also_in_a_sweep_and_knows_its_size_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["data=folder", f"data.root={photos(tmp_path / 'photos', 16)}", "model=resnet8", "trainer.max_epochs=1"]
    run = train_words([*words, "hydra.run.dir=one"])
    assert run.config["data"]["image_size"] == 32 and run.splits.test is None and (tmp_path / "one" / "scores.json").exists()
    assert run.predict([tmp_path / "photos" / "class 0" / "0.png"]).shape == (1, 3, 2)
    (tmp_path / "photos" / "class 0" / "5.png").rename(tmp_path / "5.png")
    with pytest.raises(
        UserError, match=r"was trained on the 7 pictures of its subset\.csv, and the dataset now gives 6, not all .* the same"
    ):
        train_words(["resume=one", "trainer.max_epochs=2"])
    (tmp_path / "5.png").rename(tmp_path / "photos" / "class 0" / "5.png")
    assert train_words(["resume=one", "trainer.max_epochs=2"]).epoch == 2
    through_hydra("train", ["-m", *words, "loss=ce,mdcs", "hydra.sweep.dir=sweep"])
    for folder in ("one", "sweep/1"):
        text = (tmp_path / folder / "run.log").read_text()
        assert text.count(" chosen from the pictures, change what you like: ") == 1 and " short side: 16 pixels" in text
        assert "ensemble" in text and f"run folder: {tmp_path / folder}" in text and " report: " in text
    assert all((tmp_path / "sweep" / str(job) / "scores.json").exists() for job in (0, 1))
