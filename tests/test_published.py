"""`mdcs import`: a checkpoint as the published code writes it becomes a run folder that evaluates, predicts and can be trained on."""

import csv
import json
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mdcs
from conftest import golden
from mdcs.cli import other_words, train_words
from mdcs.errors import UserError

NAMES = [f"class {label}" for label in range(10)]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint with the golden CIFAR-10 weights and, as upstream, an object of a module that is not here; pictures of ten classes."""
    folder = tmp_path_factory.mktemp("published")
    vectors = golden("resnet32_experts.npz")
    start = "c10/state/"
    state = {f"module.{key.removeprefix(start)}": torch.from_numpy(vectors[key]).float() for key in vectors if key.startswith(start)}
    content = {"arch": "ResNet32Model", "epoch": 398, "state_dict": OrderedDict(state), "optimizer": {"state": {}, "param_groups": [{}]}}
    there = types.ModuleType("parse_config")
    there.ConfigParser = type("ConfigParser", (), {"__module__": "parse_config"})
    sys.modules["parse_config"] = there
    config = there.ConfigParser()
    config._config, config._save_dir, config.resume = OrderedDict(name="mdcs", n_gpu=1), Path("saved/models"), None
    torch.save(content | {"monitor_best": np.float64(0.56), "config": config}, folder / "model_best.pth")
    del sys.modules["parse_config"]
    random = np.random.RandomState(0)
    for split, number in (("train", 3), ("test", 2)):
        for name in NAMES:
            (folder / "pictures" / split / name).mkdir(parents=True)
            for picture in range(number):
                pixels = random.randint(0, 256, (32, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "pictures" / split / name / f"{picture}.bmp")
    return folder / "model_best.pth", folder / "pictures"


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_a_published_checkpoint_becomes_a_run(places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, pictures = places
    monkeypatch.chdir(tmp_path)
    data = ["data=cifar10", f"data.root={pictures}", "data.imbalance_factor=1"]
    folder = other_words("import", ["format=mdcs", f"file={file}", *data, "output=imported"])
    run = mdcs.load(folder)
    vectors = golden("resnet32_experts.npz")
    with torch.no_grad():
        out = run.net.double().eval()(torch.from_numpy(vectors["input"]))
    assert np.abs(out.logits.numpy() - vectors["c10/eval/logits"]).max() < 1e-5  # the weights go through float32, which holds them exactly
    assert run.classes.names == tuple(NAMES) and run.config["model"]["depth"] == 32

    one = pictures / "test" / NAMES[3] / "0.bmp"
    pixels_3HW = torch.from_numpy(np.array(Image.open(one))).permute(2, 0, 1)
    again = mdcs.load(folder)
    torch.testing.assert_close(again.predict(one), again.predict(pixels_3HW[None]), rtol=0, atol=1e-5)

    scores = other_words("evaluate", [f"run={folder}"])
    assert (run.epoch, scores["checkpoint_epoch"], run.config["trainer"]["max_epochs"]) == (398, 398, 398)
    assert scores["n"] == 20 and json.loads((tmp_path / "imported" / "scores.json").read_text())["accuracy"] == scores["accuracy"]

    tuned = train_words(
        [*data, f"model.pretrained={folder}", "trainer.max_epochs=1", "optim.lr=0", "hydra.run.dir=tuned", "optim.warmup_epochs=0"]
    )
    for name, weight in mdcs.load(folder).net.named_parameters():
        assert torch.equal(weight, tuned.net.get_parameter(name)), name
    assert tuned.predict([one]).shape == (1, 3, 10)
    assert any("classifiers are taken, too" in note for note in tuned.notes) and "anew" not in " ".join(tuned.notes)

    other_words("predict", [f"run={folder}", f"input={pictures / 'test'}", "output=answers.csv"])
    rows = list(csv.DictReader((tmp_path / "answers.csv").read_text().splitlines()))
    assert len(rows) == 20 and {row["expert_3"] for row in rows} <= set(NAMES)
    assert sum(row["class_1"] in row["file"] for row in rows) == 20 * scores["accuracy"]

    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=rf"^{folder} was imported, without an optimiser .* with model.pretrained={folder}$"):
        train_words([f"resume={folder}"])
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_mistakes(places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, pictures = places
    monkeypatch.chdir(tmp_path)
    data = [f"data.root={pictures}", "data.imbalance_factor=1"]
    three = ["data=cifar10", "data.classes=['class 1','class 2','class 3']"]
    with pytest.raises(UserError, match=r"is a network for 10 classes, but this dataset has 3"):
        other_words("import", [f"file={file}", *three, *data, "output=wrong"])
    with pytest.raises(UserError, match=r"there is no such file"):
        other_words("import", ["file=nothing.pth", "data=cifar10", *data, "output=wrong"])
    with pytest.raises(UserError, match=r"^import.format='ride': expected one of mdcs"):
        other_words("import", ["format=ride", f"file={file}", "data=cifar10", *data])
    with pytest.raises(UserError, match=r"leaves open how its pictures are prepared; .* data.image_size=32 augment=cifar"):
        other_words("import", [f"file={file}", "data=folder", data[0], "augment=cifar", "output=wrong"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match=r"exists already"):
        other_words("import", [f"file={file}", "data=cifar10", *data, "output=full"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
