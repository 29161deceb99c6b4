"""What a report knows of a run: numbers equal to scores.json's, tables, lists of pictures, files that are missing."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from mdcs.errors import UserError
from mdcs.evaluation.predictions import Predictions
from mdcs.report.contents import GROUPS, Contents, curve_columns, read_contents, read_metrics, run_names
from mdcs.training.meters import columns
from run_cases import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Contents:
    return read_contents(make_run(tmp_path_factory.mktemp("runs") / "mine"))


def test_numbers_are_those_of_scores_json(run: Contents) -> None:
    assert [row["accuracy"] for row in run.class_rows()] == [row["accuracy"] for row in run.scores["per_class"]]
    for k, expert in enumerate(run.scores["experts"], 1):
        assert (run.answers_NJ[:, k] == run.predictions.labels).mean() == pytest.approx(expert["accuracy"])
    assert run.reliability_sums.reliability() == run.scores["reliability"]
    assert run.diversity.table()["kl"] == pytest.approx(run.scores["diversity"]["kl"])
    without = dataclasses.replace(run, scores={k: v for k, v in run.scores.items() if k not in ("reliability", "confused")})
    assert without.reliability() == run.reliability() and without.confused() == run.confused()
    assert run.group_sizes() == {"many": 4, "medium": 3, "few": 3} and run.groups[0] == "many" and run.groups[9] == "few"
    assert run.provenance == "n = 120 test pictures, seed 0, last epoch (4)"


def test_lists_of_pictures(run: Contents) -> None:
    labels, answers, sure = run.predictions.labels, run.answers_NJ, run.confidence_NJ
    wrong = run.confident_mistakes(5)
    all_wrong = [n for n in range(120) if answers[n, 0] != labels[n]]
    assert len(wrong) == 5 and wrong == sorted(all_wrong, key=lambda n: -sure[n, 0])[:5]
    alone = run.only_one_right(6)
    assert {k for _, k in alone} == {1, 2, 3} and len(alone) == 6
    for n, k in alone:
        assert [bool(answers[n, j] == labels[n]) for j in (1, 2, 3)] == [j == k for j in (1, 2, 3)]


def test_logits_give_the_answers(run: Contents) -> None:
    logits = np.asarray(Predictions.read(run.folder / "predictions" / "test").logits, dtype=np.float32)
    assert np.array_equal(run.answers_NJ[:, 0], logits.mean(1).argmax(-1))
    probs = np.exp(logits[:, 1] - np.log(np.exp(logits[:, 1]).sum(-1, keepdims=True)))
    assert np.allclose(run.confidence_NJ[:, 2], probs.max(-1), atol=1e-5)


def test_curves(run: Contents, tmp_path: Path) -> None:
    curves = run.curves()
    assert list(curves["loss"]) == ["total", "diversity"]
    assert np.allclose(curves["loss"]["total"], [(1, 5), (2, 2.5), (3, 5 / 3), (4, 1.25)])
    assert np.allclose(curves["accuracy in %"]["training"], [(1, 20), (2, 40), (3, 60), (4, 80)])
    assert list(curves["accuracy in %"]) == ["training"]  # val/acc has no values
    of_group = curves["confident pictures in %, by shot group"]
    assert [epoch for epoch, _ in of_group["few-shot classes"]] == [2, 3, 4]
    assert np.allclose(of_group["many-shot classes"], [(1, 25), (2, 50), (3, 75), (4, 100)])
    assert set(curves) == {"loss", "accuracy in %", "confident pictures in %, by shot group"}
    (tmp_path / "metrics.csv").write_text("epoch,train/loss,lr\n1,nan,inf\n2,x,\n")
    rows = read_metrics(tmp_path / "metrics.csv")
    assert rows == [{"epoch": epoch, "train/loss": None, "lr": None} for epoch in (1, 2)]
    assert read_metrics(tmp_path / "none.csv") == []


@pytest.mark.parametrize("num_experts", [1, 2, 3])
def test_each_figure_of_an_epoch_has_its_curve(num_experts: int) -> None:
    drawn = [column for panel in curve_columns(num_experts).values() for column in panel.values()]
    known = columns(num_experts)
    # Not drawn: what is the same in each run, and, to leave room, two of the differences by group.
    rest = {"epoch", "lr", "train/distill_weight", "images_per_second"}
    rest |= {f"val/{name}_{group}" for name in ("recall_sd", "oracle_gap") for group in GROUPS}
    if num_experts > 1:
        assert len(drawn) == len(set(drawn)) and set(drawn) == set(known) - rest
    else:
        assert set(known) - rest - set(drawn) == {"val/acc_expert_1"}, "it is the ensemble"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.yaml: it is not a run folder"):
        read_contents(tmp_path)
    folder = make_run(tmp_path / "mine")
    scores = json.loads((folder / "scores.json").read_text())
    (folder / "scores.json").write_text(json.dumps(scores | {"split": "val"}))
    with pytest.raises(UserError, match="no stored predictions"):
        read_contents(folder)
    (folder / "scores.json").unlink()
    with pytest.raises(UserError, match=r"`mdcs evaluate run=.*mine` writes it"):
        read_contents(folder)


def test_names_tell_runs_apart() -> None:
    assert run_names([Path("/a/mdcs"), Path("/a/ce")]) == ["mdcs", "ce"]
    assert run_names([Path("/a/mdcs/1"), Path("/a/ce/1")]) == ["mdcs/1", "ce/1"]
    assert run_names([Path("/runs/digits/2026-01-01_12-00-00")]) == ["digits/2026-01-01_12-00-00"]
