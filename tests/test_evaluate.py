"""From a trained run to scores.json: what the verb adds to the scores, and which prior a loss leaves in the logits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mdcs
from mdcs.analyse import analyse
from mdcs.analysis.diversity import linear_cka
from mdcs.build import Run
from mdcs.data.files import Files
from mdcs.errors import UserError
from mdcs.evaluate import evaluate, implied_prior, write_scores
from mdcs.evaluation.predictions import Predictions, stored
from mdcs.reporting import report
from mdcs.types import Classes

CLASSES = Classes(("a", "b", "c"), torch.tensor([100, 20, 4]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    return mdcs.run(["loss=ce", "trainer.max_epochs=3", "data.val_fraction=0.2", f"hydra.run.dir={folder}"])


def test_scores_of_a_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    content = evaluate(str(run.folder))
    assert content == json.loads((run.folder / "scores.json").read_text())
    assert content["agnostic"]["implied_prior"] == "training"
    sets = {row["name"]: row for row in content["agnostic"]["sets"]}
    assert sets["uniform"]["average"] == pytest.approx(content["accuracy"])
    assert sets["forward-50"]["average"] > content["accuracy"] > sets["backward-50"]["average"]
    assert content["temperature"]["n"] == len(Predictions.read(run.folder / "predictions" / "val").labels)
    assert content["ci"]["accuracy"][0] < content["accuracy"] < content["ci"]["accuracy"][1]
    shown = capsys.readouterr().out
    assert "backward-50" in shown and "mean of the logits implies: training" in " ".join(shown.split())
    assert evaluate(str(run.folder), "val")["temperature"] is None  # never fitted on what it is scored on


def test_post_hoc_logit_adjustment_has_its_own_file(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = evaluate(str(run.folder))
    capsys.readouterr()
    with pytest.raises(UserError, match=r"^logit_adjustment=-1\.0: expected a number above 0"):
        evaluate(str(run.folder), logit_adjustment=-1.0)
    adjusted = evaluate(str(run.folder), logit_adjustment=1.0)
    shown = capsys.readouterr().out
    assert f"scores: {run.folder / 'scores_test_adjusted_1.json'}" in shown and adjusted["checkpoint_epoch"] == before["checkpoint_epoch"]
    assert f"test split, logits less 1 log prior, n = 600, last epoch ({before['checkpoint_epoch']})" in shown
    assert json.loads((run.folder / "scores.json").read_text()) == before
    assert json.loads((run.folder / "scores_test_adjusted_1.json").read_text()) == adjusted
    logits = torch.from_numpy(np.array(Predictions.read(run.folder / "predictions" / "test").logits)).float().mean(1)
    answer = (logits - run.classes.prior.log().float()).argmax(-1)
    assert adjusted["accuracy"] == pytest.approx((answer == run.splits.test.labels).double().mean().item())
    uniform = next(row for row in before["agnostic"]["sets"] if row["name"] == "uniform")
    assert adjusted["accuracy"] == pytest.approx(uniform["known_prior"]) and adjusted["accuracy_few"] >= before["accuracy_few"]


def test_two_views_are_predicted_and_used(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(run.folder, tmp_path / "run"))
    place = folder / "predictions" / "test"
    before = json.loads((folder / "scores.json").read_text())
    assert "SADE weights" not in capsys.readouterr().out and before["agnostic"]["sets"][0]["agreement"] is None
    content = evaluate(str(folder), views=True, device="cpu")
    views_N2KC = np.load(place / "views" / "logits.npy")
    plain_NKC = Predictions.read(place).logits
    assert views_N2KC.shape == (600, 2, 3, 10) and views_N2KC.dtype == np.float16 and (views_N2KC.max(-1) == 0).all()
    assert [file.name for file in sorted(place.parent.iterdir())] == ["test", "val"]
    # two draws, each another than the picture itself, of which they are views all the same
    first, second, plain = views_N2KC[:, 0].argmax(-1), views_N2KC[:, 1].argmax(-1), plain_NKC.argmax(-1)
    assert (views_N2KC[:, 0] != views_N2KC[:, 1]).mean() > 0.5 and (views_N2KC[:, 0] != plain_NKC).mean() > 0.5
    assert min((first == plain).mean(), (second == plain).mean()) > (np.roll(first, 97, 0) == plain).mean() + 0.1
    row = content["agnostic"]["sets"][0]
    assert 0 < row["agreement"] <= 1 and sum(row["agreement_weights"]) == pytest.approx(1)
    shown = " ".join(capsys.readouterr().out.split())
    assert "SADE weights" in shown and "[weights in %]" in shown
    assert {key: content[key] for key in before if key != "agnostic"} == {key: before[key] for key in before if key != "agnostic"}

    assert evaluate(str(folder)) == content  # from what is stored
    assert evaluate(str(folder), views=True, device="cpu") == content
    assert np.array_equal(np.load(place / "views" / "logits.npy"), views_N2KC)
    assert evaluate(str(folder), checkpoint="last")["agnostic"]["sets"][0]["agreement"] is None  # new predictions, no views of them


def test_features_are_kept_and_compared(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(run.folder, tmp_path / "run"))
    place = folder / "predictions" / "test"
    before = json.loads((folder / "scores.json").read_text())
    report(str(folder), figures=str(tmp_path / "without"))
    content = evaluate(str(folder), features=True, device="cpu")
    shown = capsys.readouterr().out
    assert "similarity of the experts' features (linear CKA) in %: 100.0 " in shown
    assert f"`mdcs report run={folder}` brings report.html up to date" in shown
    features_NKD = np.load(place / "features.npy")
    assert sorted(file.name for file in place.iterdir()) == ["features.npy", "index.npy", "labels.npy", "logits.npy", "paths.txt"]
    # The classifiers turn them into the predictions.
    logits_NKC = mdcs.load(folder).net.heads(torch.from_numpy(features_NKD))
    assert np.array_equal(stored(logits_NKC.detach()), Predictions.read(place).logits)
    cka_KK = np.array(content["diversity"]["cka"])
    assert np.array_equal(cka_KK, linear_cka(features_NKD)) and np.allclose(np.diag(cka_KK), 1) and (cka_KK[0, 1:] < 0.999).all()
    assert {**content, "diversity": {**content["diversity"], "cka": None}} == {**before, "diversity": {**before["diversity"], "cka": None}}
    assert "cka" not in before["diversity"] and evaluate(str(folder)) == content  # from what is stored

    capsys.readouterr()
    analyse([str(folder)])
    told = " ".join(f"{100 * value:.1f}" for value in cka_KK[0])
    assert f"CKA of their features in %: {told} |" in capsys.readouterr().out
    assert "Similarity of the experts&#x27; features" in report(str(folder), figures=str(tmp_path / "with")).read_text()
    assert (tmp_path / "with" / "features.svg").exists() and not (tmp_path / "without" / "features.svg").exists()
    assert "cka" not in evaluate(str(folder), checkpoint="last")["diversity"]  # new predictions, no features of them
    with pytest.raises(UserError, match="features=maybe: expected true or false"):
        evaluate(str(folder), features="maybe")  # type: ignore[arg-type]


def test_views_of_what_was_not_predicted_are_refused(run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run.folder, tmp_path / "run"))
    with pytest.raises(UserError, match="views=maybe: expected true or false"):
        evaluate(str(folder), views="maybe")  # type: ignore[arg-type]
    labels = folder / "predictions" / "test" / "labels.npy"
    np.save(labels, np.load(labels)[::-1])
    with pytest.raises(UserError, match="is of other pictures than the test split has now: name checkpoint=last"):
        evaluate(str(folder), views=True, device="cpu")
    content = json.loads((folder / "scores.json").read_text())
    (folder / "scores.json").write_text(json.dumps(content | {"checkpoint_epoch": 2}))
    with pytest.raises(UserError, match="is of epoch 2 and the checkpoint of epoch 3: name checkpoint=last"):
        evaluate(str(folder), views=True, device="cpu")
    assert not (labels.parent / "views").exists() and not (labels.parent / "views.part").exists()


def test_views_of_decoded_pictures(tmp_path: Path) -> None:
    random = np.random.Generator(np.random.PCG64(0))
    for split, per_class in {"train": 6, "test": 3}.items():
        for name, level in {"dark": 60, "bright": 190}.items():
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for number in range(per_class):
                pixels = np.clip(level + random.normal(0, 40, (80 + number, 90, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{number}.png")
    words = ["data=folder", f"data.root={tmp_path / 'photos'}", "data.image_size=72", "data.batch_size=4", "model=resnet8"]
    made = mdcs.run([*words, "augment=imagenet", "trainer.max_epochs=1", f"hydra.run.dir={tmp_path / 'run'}"])
    assert isinstance(made.splits.test.images, Files)
    evaluate(str(made.folder), views=True, device="cpu")
    views_N2KC = np.load(tmp_path / "run" / "predictions" / "test" / "views" / "logits.npy")
    assert views_N2KC.shape == (6, 2, 3, 2) and not np.array_equal(views_N2KC[:, 0], views_N2KC[:, 1])
    evaluate(str(made.folder), views=True, device="cpu")
    assert np.array_equal(np.load(tmp_path / "run" / "predictions" / "test" / "views" / "logits.npy"), views_N2KC)


@pytest.mark.slow
def test_the_expert_of_rare_classes_gains_weight_where_they_are_frequent(tmp_path: Path) -> None:
    run = mdcs.run(["trainer.max_epochs=60", f"hydra.run.dir={tmp_path / 'run'}"])
    rows = {row["name"]: row for row in evaluate(str(run.folder), views=True, device="cpu")["agnostic"]["sets"]}
    first, last = ({name: row["agreement_weights"][k] for name, row in rows.items() if "agreement_weights" in row} for k in (0, 2))
    assert last["backward-50"] > last["backward-10"] > last["uniform"] > last["forward-10"] > last["forward-50"]
    assert first["forward-50"] > first["uniform"] > first["backward-50"]
    assert first["forward-50"] > last["forward-50"] + 0.1 and last["backward-50"] > first["backward-50"] + 0.1
    assert rows["backward-50"]["agreement"] > rows["backward-50"]["average"]


def test_a_run_without_a_test_split_is_judged_by_validation(run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run.folder, tmp_path / "run"))
    shutil.rmtree(folder / "predictions" / "test")
    for file in folder.glob("scores*.json"):
        file.unlink()
    write_scores(folder, run.classes, "val", "last", {"seed": 0, "views": 1, "parameters": 1, "macs_per_picture": 1})  # as training does
    first = json.loads((folder / "scores.json").read_text())
    assert first["split"] == "val" and first["temperature"] is None and evaluate(str(folder)) == first
    assert [file.name for file in folder.glob("scores*.json")] == ["scores.json"]
    assert evaluate(str(folder), "train")["split"] == "train" and (folder / "scores_train.json").exists()
    assert json.loads((folder / "scores.json").read_text()) == first


@pytest.mark.parametrize(
    ("loss", "words", "prior"),
    [
        ({"_target_": "mdcs.losses.prior.PriorAdjusted", "lambdas": 0.0}, "training", [100 / 124, 20 / 124, 4 / 124]),
        ({"_target_": "mdcs.losses.prior.PriorAdjusted", "lambdas": 1.0}, "uniform", [1 / 3] * 3),
        ({"_target_": "mdcs.losses.mdcs.MDCS"}, "uniform", [1 / 3] * 3),
        ({"_target_": "mdcs.losses.prior.PriorAdjusted", "lambdas": 0.5}, "between", [10 / (12 + 20**0.5), 20**0.5 / (12 + 20**0.5), None]),
    ],
)
def test_prior_that_a_loss_leaves_in_the_logits(loss: dict, words: str, prior: list) -> None:
    said, found_C = implied_prior(loss, CLASSES, 3)
    assert said.startswith(words)
    assert found_C[:2].tolist() == pytest.approx(prior[:2]) and found_C.sum() == pytest.approx(1)
