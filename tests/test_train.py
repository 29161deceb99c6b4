"""A run from beginning to end, in this process: folder, scores, evaluate, load, resume, the Python interface."""

import csv
import io
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import mdcs
from mdcs.build import build
from mdcs.cli import other_words, train_words
from mdcs.config import compose, plain
from mdcs.data.module import LongTailData
from mdcs.errors import UserError
from mdcs.evaluation.combine import combine
from mdcs.evaluation.predictions import Predictions
from mdcs.train import first_files

EPOCHS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with a validation split."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    run = mdcs.run([f"trainer.max_epochs={EPOCHS}", "data.val_fraction=0.2", f"hydra.run.dir={folder}"])
    assert run.folder == folder
    return folder


def test_the_run_folder_is_complete(folder: Path) -> None:
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "config.yaml",
        "classes.json",
        "subset.csv",
        "metrics.csv",
        "run.log",
        "scores.json",
        "report.html",
        *(f"checkpoints/{name}.ckpt" for name in ("last", "best")),
        *(f"predictions/{split}/{name}" for split in ("test", "val") for name in ("logits.npy", "labels.npy", "index.npy", "paths.txt")),
    }
    assert yaml.safe_load((folder / "config.yaml").read_text())["loss"]["alpha"] == 0.6
    run_log = (folder / "run.log").read_text()
    assert run_log.count(": loss ") == EPOCHS
    assert "mdcs (λ = -0.5, 1, 2.5) on ResNetCifar with K = 3" in run_log
    classes = json.loads((folder / "classes.json").read_text())
    subset = (folder / "subset.csv").read_text().splitlines()
    assert sum(classes["counts"]) == len(subset) - 1
    assert classes["counts_before_validation"] == [110, 71, 46, 29, 19, 12, 8, 5, 3, 2]
    assert sum(classes["counts"]) < 305


def test_the_subset_is_a_table_whatever_the_names() -> None:
    run = build(plain(compose("train", ["trainer.max_epochs=1"])))
    names = ("plain", "a, b", 'the "best"', "ä", *map(str, range(6)))
    run.classes = replace(run.classes, names=names)
    for odd in ("a/1.png", "a,b/1.png", 'say "x".png', "two\nlines.png", "old\rmac.png"):
        paths = [odd, *(f"b/{row}.png" for row in range(1, len(run.splits.train.labels)))]
        run.splits = run.splits._replace(train=run.splits.train._replace(paths=paths))
        text = first_files(run)["subset.csv"]
        header, *rows = csv.reader(io.StringIO(text, newline=""))
        assert header == ["position", "label", "class", "path"]
        labels = run.splits.train.labels.tolist()
        found = [[str(position), str(label)] for position, label in zip(run.splits.train.positions.tolist(), labels, strict=True)]
        assert rows == [[*pair, names[label], path] for pair, label, path in zip(found, labels, paths, strict=True)]


def test_metrics_have_one_row_an_epoch_and_the_documented_columns(folder: Path) -> None:
    header, *rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    assert header[:6] == ["epoch", "lr", "train/loss", "train/diversity", "train/consistency", "train/distill_weight"]
    assert header[-5:] == ["val/oracle_gap", "val/oracle_gap_many", "val/oracle_gap_medium", "val/oracle_gap_few", "images_per_second"]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    values = dict(zip(header, map(float, rows[-1]), strict=True))
    assert values["train/distill_weight"] == pytest.approx(0.6 * EPOCHS / 20)
    loss = values["train/diversity"] + values["train/distill_weight"] * values["train/consistency"]
    assert values["train/loss"] == pytest.approx(loss, rel=1e-4)
    assert float(rows[-1][2]) < 0.6 * float(rows[0][2]), "the loss falls"


def test_scores_follow_from_the_stored_predictions(folder: Path) -> None:
    scores = json.loads((folder / "scores.json").read_text())
    stored = Predictions.read(folder / "predictions" / "test")
    assert stored.logits.shape == (600, 3, 10) and stored.logits.dtype == np.float16
    assert (stored.logits.max(-1) == 0).all()
    answers = stored.logits.astype(np.float32).mean(1).argmax(-1)
    assert scores["accuracy"] == pytest.approx((answers == stored.labels).mean())
    assert scores["accuracy"] > 0.3
    for key in (
        "test_set_sha256",
        "parameters",
        "macs_per_picture",
        "wall_seconds",
        "cpu_hours",
        "git_commit",
        "peak_memory_mib",
        "versions",
    ):
        assert scores[key], key
    facts = {key: scores[key] for key in ("split", "checkpoint", "n", "epochs", "seed", "world_size", "num_experts", "views", "device")}
    assert facts == dict(split="test", checkpoint="last", n=600, epochs=3, seed=0, world_size=1, num_experts=3, views=2, device="cpu")
    assert [row["train_count"] for row in scores["per_class"]] == json.loads((folder / "classes.json").read_text())["counts"]


def test_evaluate_reproduces_the_scores_from_predictions_and_from_the_checkpoint(folder: Path) -> None:
    before = json.loads((folder / "scores.json").read_text())
    (folder / "scores.json").rename(folder / "scores.before.json")
    other_words("evaluate", [f"run={folder}"])
    again = json.loads((folder / "scores.json").read_text())
    assert again == {key: before[key] for key in again}
    (folder / "scores.before.json").rename(folder / "scores.json")
    other_words("evaluate", [f"run={folder}", "checkpoint=last"])
    assert json.loads((folder / "scores.json").read_text()) == before


def test_evaluate_other_splits_and_checkpoints_beside_the_runs_own(folder: Path) -> None:
    before = (folder / "scores.json").read_text()
    val = other_words("evaluate", [f"run={folder}", "split=val"])
    best = other_words("evaluate", [f"run={folder}", "checkpoint=best", "split=val"])
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    logged = [float(row[rows[0].index("val/acc")]) for row in rows[1:]]
    assert val["accuracy"] == pytest.approx(logged[-1], abs=1e-6)
    assert best["accuracy"] == pytest.approx(max(logged), abs=1e-6)
    assert (folder / "scores_val_best.json").exists()
    assert (folder / "scores.json").read_text() == before


def test_a_loaded_run_predicts_what_is_stored(folder: Path) -> None:
    run = mdcs.load(folder)
    images = run.splits.test.images[:50]
    logits = run.predict(images)
    stored = torch.from_numpy(Predictions.read(folder / "predictions" / "test").logits[:50].astype(np.float32))
    torch.testing.assert_close(logits - logits.amax(-1, keepdim=True), stored, rtol=1e-3, atol=2e-2)
    assert combine(logits).argmax(-1).equal(combine(stored).argmax(-1))
    with pytest.raises(UserError, match=r"must be uint8 \(N, 3, H, W\)"):
        run.predict(images.float())


def test_checkpoints_hold_nothing_but_tensors_and_plain_values(folder: Path) -> None:
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == EPOCHS - 1
    assert all(name.startswith("net.") for name in checkpoint["state_dict"])


def test_a_finished_run_says_so_and_longer_runs_continue(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = (folder / "checkpoints" / "last.ckpt").read_bytes()
    with caplog.at_level(logging.INFO, logger="mdcs"):
        train_words([f"resume={folder}"])
    assert "has finished its 3 epochs" in caplog.text
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == weights
    with pytest.raises(UserError, match=r"loss.alpha=1: a resumed run keeps its configuration"):
        train_words([f"resume={folder}", "loss.alpha=1"])


def test_a_longer_run_continues_and_leaves_nothing_of_the_shorter_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    mdcs.run(["trainer.max_epochs=1", f"hydra.run.dir={folder}"])
    short = json.loads((folder / "scores.json").read_text())
    train_words([f"resume={folder}", "trainer.max_epochs=3"])
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_epochs"] == 3
    scores = json.loads((folder / "scores.json").read_text())
    assert (short["epochs"], scores["epochs"]) == (1, 3)
    assert [line.split(",")[0] for line in (folder / "metrics.csv").read_text().splitlines()] == ["epoch", "1", "2", "3"]
    assert other_words("evaluate", [f"run={folder}"])["accuracy"] == scores["accuracy"] != short["accuracy"]


def test_pieces_of_a_run_that_max_time_cuts_are_the_whole_run(tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    words = ["trainer.max_epochs=4", "model.num_experts=1"]
    mdcs.run([*words, f"hydra.run.dir={whole}"])
    mdcs.run([*words, "trainer.max_time={seconds: 0}", f"hydra.run.dir={pieces}"])
    assert not (pieces / "scores.json").exists()
    train_words([f"resume={pieces}", "trainer.max_time={hours: 1}"])
    states = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for folder in (whole, pieces)]
    assert all(states[0][name].equal(states[1][name]) for name in states[0])
    assert len((pieces / "metrics.csv").read_text().splitlines()) == 5


def test_steps_that_do_not_fill_an_epoch_are_not_kept(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    mdcs.run(["trainer.max_steps=15", "model.num_experts=1", f"hydra.run.dir={folder}"])
    assert json.loads((folder / "scores.json").read_text())["epochs"] == 1
    assert len((folder / "metrics.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "steps", "short"),
    [
        (["trainer.max_steps=2"], 10, "limit_train_batches=2"),
        (["trainer.max_steps=2", "trainer.accumulate_grad_batches=4"], 10, "limit_train_batches=8"),
        (["trainer.max_steps=2", "trainer.limit_train_batches=0.3"], 3, "limit_train_batches=2"),
    ],
)
def test_a_run_of_less_than_an_epoch_is_refused(words: list[str], steps: int, short: str, tmp_path: Path) -> None:
    reason = rf"^trainer\.max_steps=2: an epoch has {steps} steps, and only whole ones are kept; for a short try set trainer\.{short} "
    with pytest.raises(UserError, match=reason):
        mdcs.run([*words, "model.num_experts=1", f"hydra.run.dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


def test_the_best_epoch_on_validation_predicts_if_asked(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    mdcs.run(["trainer.max_epochs=3", "checkpoint=best", "data.val_fraction=0.3", "model.num_experts=1", f"hydra.run.dir={folder}"])
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    logged = [float(row[rows[0].index("val/acc")]) for row in rows[1:]]
    epoch = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["epoch"]
    assert epoch == logged.index(max(logged))
    assert json.loads((folder / "scores.json").read_text())["checkpoint"] == "best"


def test_the_callers_random_numbers_are_not_touched(folder: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    mdcs.load(folder)
    assert torch.rand(3).equal(expected)


def test_an_existing_folder_is_refused_untouched(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=r"exists already: continue it with resume="):
        mdcs.run([f"hydra.run.dir={folder}"])
    assert sorted(folder.rglob("*")) == before


def test_nothing_is_written_before_the_parts_are_built(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2 values for model.num_experts=3"):
        mdcs.run([f"hydra.run.dir={tmp_path / 'runs' / 'x'}", "loss.lambdas=[1,2]"])
    assert not any(tmp_path.iterdir())


def test_twenty_steps_are_the_recorded_ones(tmp_path: Path) -> None:
    """A refactoring that changes what is computed changes these numbers, recorded in float64."""
    folder = tmp_path / "run"
    mdcs.run(["trainer.max_epochs=2", "trainer.precision=64-true", f"hydra.run.dir={folder}"])
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    losses = [float(row[rows[0].index("train/loss")]) for row in rows[1:]]
    assert losses == pytest.approx([17.938504, 5.4556497], rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_trains(precision: str, tmp_path: Path) -> None:
    run = mdcs.run(["trainer.max_epochs=2", f"trainer.precision={precision}", f"hydra.run.dir={tmp_path / 'run'}"])
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["precision"] == precision
    rows = [line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()]
    assert [float(row[2]) for row in rows[1:]] == pytest.approx([17.94, 5.46], rel=0.05), "float32: see the test above"
    assert run.module.loss.bias(torch.float64)[2, 0].item() == pytest.approx(2.5 * np.log(110), rel=1e-12)


def test_a_damaged_checkpoint_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    mdcs.run(["trainer.max_epochs=1", "model.num_experts=1", f"hydra.run.dir={folder}"])
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for call in (lambda: train_words([f"resume={folder}", "trainer.max_epochs=2"]), lambda: mdcs.load(folder)):
        with pytest.raises(UserError, match=r"last.ckpt cannot be read as a checkpoint"):
            call()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_loss_that_explodes_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss of epoch 1 is nan: lower optim.lr"):
        mdcs.run(["optim.lr=1e30", "optim.weight_decay=1e9", "model.head=linear", f"hydra.run.dir={tmp_path / 'run'}"])


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seed_changes_weights_and_order_but_not_the_data(seed: int) -> None:
    one, other = (build(plain(compose("train", [f"seed={seed}"]))) for _ in range(2))
    different = build(plain(compose("train", [f"seed={seed + 1}"])))
    assert one.splits.train.paths == different.splits.train.paths
    weights = [run.net.backbone.conv1.weight for run in (one, other, different)]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])

    def first(data: LongTailData) -> list[int]:
        return next(iter(data.train_dataloader())).index.tolist()

    assert first(one.data()) == first(other.data()) != first(different.data())
