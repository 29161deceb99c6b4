"""From a trained run to scores.json: what the verb adds to the scores, and which prior a loss leaves in the logits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import mdcs
from mdcs.build import Run
from mdcs.evaluate import evaluate, implied_prior, write_scores
from mdcs.evaluation.predictions import Predictions
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


def test_post_hoc_logit_adjustment_has_its_own_file(run: Run) -> None:
    before = evaluate(str(run.folder))
    adjusted = evaluate(str(run.folder), logit_adjustment=1.0)
    assert json.loads((run.folder / "scores.json").read_text()) == before
    assert json.loads((run.folder / "scores_test_adjusted_1.json").read_text()) == adjusted
    logits = torch.from_numpy(np.array(Predictions.read(run.folder / "predictions" / "test").logits)).float().mean(1)
    answer = (logits - run.classes.prior.log().float()).argmax(-1)
    assert adjusted["accuracy"] == pytest.approx((answer == run.splits.test.labels).double().mean().item())
    uniform = next(row for row in before["agnostic"]["sets"] if row["name"] == "uniform")
    assert adjusted["accuracy"] == pytest.approx(uniform["known_prior"]) and adjusted["accuracy_few"] >= before["accuracy_few"]


def test_views_that_are_stored_are_used(run: Run) -> None:
    place = run.folder / "predictions" / "test" / "views"
    place.mkdir()
    logits = Predictions.read(place.parent).logits
    np.save(place / "logits.npy", np.stack([logits, logits + np.float16(0.1)], 1))
    row = evaluate(str(run.folder))["agnostic"]["sets"][0]
    assert 0 < row["agreement"] <= 1 and sum(row["agreement_weights"]) == pytest.approx(1)


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
